# SPDX-License-Identifier: AGPL-3.0-or-later
"""TensorRT-RTX: builds an engine ahead of time, without a GPU, and reports each layer's real type.

Its engines run on GeForce RTX and RTX PRO cards and are not TensorRT plans. Here it proves that the graph parses,
builds, and keeps its precisions; it says nothing about the speed of TensorRT.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultra_mq.errors import BackendError
from ultra_mq.files import atomic_path
from ultra_mq.lint import layer_of

POINTWISE = "kgen"
"""Generated kernels of the layer table; they name the convolution before them, but convolve nothing."""

INSTALL_HINT = "pip install 'ultra-mq[tensorrt-rtx]'"


@dataclass(frozen=True)
class RtxEngine:
    """An engine built ahead of time.

    Attributes:
        path: Engine file with Ultralytics' metadata header.
        version: TensorRT-RTX version.
        compute_capability: GPU generation it was built for, such as ``8.9``.
        size_bytes: Size of the file.
        layer_types: Module path to the type its convolution really runs in: ``Int8``, ``Half`` or ``Float``.
    """

    path: Path
    version: str
    compute_capability: str
    size_bytes: int
    layer_types: dict[str, str]


def why_unavailable() -> str | None:
    """Say why engines cannot be built here, or None where they can."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return f"TensorRT-RTX is not installed; {INSTALL_HINT}"
    try:
        import tensorrt_rtx  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        return f"TensorRT-RTX cannot be loaded ({error}); reinstall it: {INSTALL_HINT}"
    return None


def build_engine(
    onnx_file: Path, path: Path, metadata: Mapping[str, Any], compute_capability: str = "8.9"
) -> RtxEngine:
    """Build an engine from a strongly typed ONNX graph.

    Args:
        onnx_file: ONNX file; its own types decide the precision.
        path: Engine file to write.
        metadata: Ultralytics metadata for the header.
        compute_capability: GPU generation to build for; RTX supports 7.5, 8.x, 8.9 and 12.x.

    Raises:
        BackendError: TensorRT-RTX is missing, or parsing or building failed; its own words are in the message.
    """
    if reason := why_unavailable():
        raise BackendError(f"No engine can be built: {reason}.")
    import tensorrt_rtx as trt

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append(message)
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message)

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx_file.read_bytes()):
        reasons = "; ".join(str(parser.get_error(index).desc()) for index in range(parser.num_errors))
        raise BackendError(f"TensorRT-RTX cannot parse '{onnx_file}': {reasons or logger.errors[-1:]}.")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    capability = f"SM{compute_capability.replace('.', '')}"
    if not hasattr(trt.ComputeCapability, capability):
        known = ", ".join(name for name in dir(trt.ComputeCapability) if name.startswith("SM"))
        raise BackendError(f"TensorRT-RTX cannot build for compute capability {compute_capability}. It knows {known}.")
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(
            f"TensorRT-RTX cannot build '{onnx_file}': {' '.join(logger.errors[-3:]) or 'no reason given'}."
        )
    engine = bytes(plan)
    header = json.dumps(dict(metadata)).encode()
    with atomic_path(path) as temporary:
        # Ultralytics' own layout: length, JSON, engine (BaseBackend.engine_header).
        temporary.write_bytes(len(header).to_bytes(4, "little") + header + engine)
    return RtxEngine(
        path=path,
        version=trt.__version__,
        compute_capability=compute_capability,
        size_bytes=path.stat().st_size,
        layer_types=read_layer_types(logger.lines),
    )


def read_layer_types(lines: list[str]) -> dict[str, str]:
    """Read the type of every convolution from the layer table that the builder logs when it is done.

    Args:
        lines: Messages of the builder's log.

    Returns:
        Module path to ``Int8``, ``Half`` or ``Float``: the type of the weights that the kernel convolves with.
    """
    table = next((line for line in reversed(lines) if line.startswith("Layers:")), "")
    types: dict[str, str] = {}
    for row in table.splitlines():
        kind = re.search(r"LayerType: (\w+)", row)
        weights = re.search(r"Constants: \[ \{.*?Datatype: (\w+)", row)
        if kind is None or weights is None or kind[1] == POINTWISE:
            continue
        for node in re.findall(r"\[ONNX Layer: ([^\]]*/Conv)\]", row):
            types[layer_of(node)] = weights[1]
    return types
