# SPDX-License-Identifier: AGPL-3.0-or-later
"""An ONNX file to a serialized engine, on every TensorRT from 8.6 on.

Up to 9 networks are weakly typed: builder flags say which precisions may be used. From 10 on, and in TensorRT-RTX,
they are strongly typed: precision stands in the graph.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .cuda import Failure
from .log import Log

EFFORT = {"optimization_level": "builder_optimization_level", "avg_timing_iterations": "avg_timing_iterations"}
"""Settings to what TensorRT calls them."""


class Builder:
    """Builds engines.

    Args:
        trt: Module ``tensorrt`` or ``tensorrt_rtx``.
        logger: TensorRT logger.
        log: What that logger fills.
        answer: Sends progress.
        rtx: Whether the module is TensorRT-RTX.
    """

    def __init__(self, trt: Any, logger: Any, log: Log, answer: Callable[[dict[str, Any]], None], *, rtx: bool) -> None:
        self.trt, self.logger, self.log, self.answer = trt, logger, log, answer
        self.strongly_typed = rtx or int(trt.__version__.split(".")[0]) >= 10
        self.kept: Any = None

    def build(self, onnx: str, plan: str, settings: dict[str, Any], timing_cache: str | None = None) -> dict[str, Any]:
        """Build an engine and write it to ``plan``.

        Args:
            onnx: ONNX file.
            plan: File to write.
            settings: ``BuildSettings`` of the client, with the flags it chose.
            timing_cache: File to start from and to keep up to date.
        """
        trt = self.trt
        start = time.perf_counter()
        self.log.clear()
        # TensorRT unloads its kernels with the last builder, and takes ten seconds to load them again.
        self.kept = self.kept or trt.Builder(self.logger)
        builder = trt.Builder(self.logger)
        flags = 0
        for name in ("EXPLICIT_BATCH", *(["STRONGLY_TYPED"] if self.strongly_typed else [])):
            flag = getattr(trt.NetworkDefinitionCreationFlag, name, None)
            flags |= 0 if flag is None else 1 << int(flag)
        network = builder.create_network(flags)
        parser = trt.OnnxParser(network, self.logger)
        if not parser.parse(Path(onnx).read_bytes()):
            reasons = [str(parser.get_error(index).desc()) for index in range(parser.num_errors)]
            raise Failure("the parser refused the graph: " + "; ".join(reasons or self.log.errors[-1:]))
        config = self._configure(builder, network, settings)
        if timing_cache is not None:
            self._use_cache(config, Path(timing_cache))
        serialized = builder.build_serialized_network(network, config)
        if serialized is not None:
            with Path(plan).open("wb") as file:
                file.write(serialized)
        if timing_cache is not None:
            # A build that failed has timed layers too, and the next attempt need not.
            self._keep_cache(config, Path(timing_cache))
        if serialized is None:
            self.log.print_recent()
            raise Failure(self.log.reason("the builder gave up and said nothing"))
        return {"seconds": time.perf_counter() - start, "layer_table": self.log.layer_table}

    def _configure(self, builder: Any, network: Any, settings: dict[str, Any]) -> Any:
        trt = self.trt
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        self._set_effort(config, settings)
        if settings.get("hardware_compatible"):
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        for name in settings.get("flags", []):
            config.set_flag(self._member(trt.BuilderFlag, name))
        if settings.get("tactic_sources") is not None:
            sources = [self._member(trt.TacticSource, name) for name in settings["tactic_sources"]]
            config.set_tactic_sources(sum(1 << int(source) for source in sources))
        if settings.get("dla_core") is not None:
            if not builder.num_DLA_cores:
                raise Failure("this device has no DLA")
            config.default_device_type = trt.DeviceType.DLA
            config.DLA_core = settings["dla_core"]
            config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
        if settings.get("compute_capability"):
            capability = "SM" + settings["compute_capability"].replace(".", "")
            config.num_compute_capabilities = 1
            config.set_compute_capability(self._member(trt.ComputeCapability, capability), 0)
        if settings.get("profile"):
            profile = builder.create_optimization_profile()
            for name, (least, best, most) in settings["profile"].items():
                profile.set_shape(name, least, best, most)
            config.add_optimization_profile(profile)
        if hasattr(trt, "IProgressMonitor"):
            config.progress_monitor = _make_monitor(trt, self.answer)
        if settings.get("precisions") and not self.strongly_typed:
            self._constrain(network, config, settings["precisions"])
        return config

    def _set_effort(self, config: Any, settings: dict[str, Any]) -> None:
        """Memory and time that the builder may spend."""
        if settings.get("workspace_gb"):
            config.set_memory_pool_limit(self.trt.MemoryPoolType.WORKSPACE, int(settings["workspace_gb"] * 2**30))
        for setting, name in EFFORT.items():
            if settings.get(setting) is not None:
                setattr(config, name, settings[setting])

    def _use_cache(self, config: Any, path: Path) -> None:
        for content in (path.read_bytes() if path.exists() else b"", b""):
            if config.set_timing_cache(config.create_timing_cache(content), False):
                return

    def _keep_cache(self, config: Any, path: Path) -> None:
        try:
            _write_whole(path, bytes(config.get_timing_cache().serialize()))
        except OSError as error:  # an engine is worth more than the time that the next build takes
            sys.stderr.write(f"the timing cache cannot be kept in {path}: {error}\n")

    def _constrain(self, network: Any, config: Any, precisions: list[list[str]]) -> None:
        """Give a weakly typed network the types that AutoCast gives a typed one; without, it may choose FP32 anywhere.

        Args:
            network: Parsed network.
            config: Builder configuration.
            precisions: Pairs of a pattern of node names and ``FLOAT`` or ``HALF``; the first that matches counts.
        """
        trt = self.trt
        config.set_flag(self._member(trt.BuilderFlag, "PREFER_PRECISION_CONSTRAINTS"))
        # What must be FP32 must not be TF32, which has no more mantissa than FP16.
        config.clear_flag(self._member(trt.BuilderFlag, "TF32"))
        untyped = [
            getattr(trt.LayerType, name, None) for name in ("CONSTANT", "CAST", "QUANTIZE", "DEQUANTIZE", "SHAPE")
        ]
        rules = [(re.compile(pattern).search, self._member(trt.DataType, name)) for pattern, name in precisions]
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            floats = [i for i in range(layer.num_outputs) if layer.get_output(i).dtype == trt.DataType.FLOAT]
            found = next((kind for matches, kind in rules if matches(layer.name)), None)
            if found is None or not floats or layer.type in untyped:
                continue
            # Attributes that strongly typed TensorRT 11 does not have.
            setattr(layer, "precision", found)  # noqa: B010
            for i in floats:
                getattr(layer, "set_output_type")(i, found)  # noqa: B009

    def _member(self, kind: Any, name: str) -> Any:
        member = getattr(kind, name, None)
        if member is None:
            known = ", ".join(sorted(key for key in kind.__members__ if key.startswith(name[:2])))
            raise Failure(f"version {self.trt.__version__} has no {kind.__name__} {name}; it knows {known or 'others'}")
        return member


def _make_monitor(trt: Any, answer: Callable[[dict[str, Any]], None]) -> Any:
    steps: dict[str, int] = {}

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            steps[phase_name] = num_steps

        def phase_finish(self, phase_name: str) -> None:
            steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            answer({"event": "progress", "phase": phase_name, "step": step + 1, "steps": steps.get(phase_name, 0)})
            return True

    return Monitor()


def _write_whole(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        if temporary.exists():
            temporary.unlink()
