# SPDX-License-Identifier: AGPL-3.0-or-later
"""The files of one plan: Q/DQ graph, FP16 graph, checkpoint, engine, accuracy; each made when it is asked for.

Everything here is a cache entry whose key is made of the key of what it was made from, so that no stage has to know
what those before it depend on.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ultra_mq.graph import (
    OPSET,
    PtqMethod,
    PtqSettings,
    convert_to_fp16,
    export_onnx,
    load_pixels,
    make_unsigned,
    ptq,
    ptq_plan,
    save_calibration,
)
from ultra_mq.measure import (
    Accuracy,
    Parity,
    Parting,
    check_parity,
    compare,
    compare_layers,
    evaluate,
    load_accuracy,
    save_accuracy,
)
from ultra_mq.plan import PrecisionPlan
from ultra_mq.prepare import gpu_index
from ultra_mq.quantization import Recovery, save_checkpoint
from ultra_mq.runtimes import Backend, CpuRuntime, Engine, Runtime, build, load_engine, open_file, save_engine
from ultra_mq.session.measuring import evaluate_file, time_tries
from ultra_mq.session.quantized import make_module, module_key, recovery_of
from ultra_mq.session.session import Session
from ultra_mq.session.target import Target, host_target

if TYPE_CHECKING:
    from torch import nn

ENGINE = "model.engine"


@dataclass(frozen=True)
class Artefacts:
    """The files that one model is made into.

    Attributes:
        session: The run.
        plan: Precision of every layer; None for ModelOpt's ONNX path.
        ptq: Settings of ModelOpt's ONNX path, in place of a plan.
    """

    session: Session
    plan: PrecisionPlan | None
    ptq: PtqSettings | None = None

    @functools.cached_property
    def key(self) -> dict[str, Any]:
        """What the graph depends on; class names stand in its metadata."""
        session, recipe = self.session, self.session.recipe
        key: dict[str, Any] = {
            "model": session.model.fingerprint,
            "names": {str(index): name for index, name in session.model.names.items()},
            "imgsz": recipe.size,
            "export": recipe.export.model_dump(mode="json", include={"batch", "dynamic"}),
            "channels": session.model.channels,
            "opset": OPSET,
        }
        if self.ptq:
            key |= {"ptq": asdict(self.ptq), "images": self._pixels_key}
        elif self.plan and self.plan.quantized:
            key |= {**module_key(session, self.plan), "unsigned": session.unsigned}
            if self.plan.placement == "onnx":
                key["images"] = self._pixels_key
        return key

    @property
    def graph(self) -> Path:
        """FP32 or Q/DQ graph, which runtimes on a CPU take and weakly typed engines are built from."""
        if self.ptq:
            return self._entry("ptq", self.key, self._make_ptq) / "ptq.onnx"
        if self.plan and self.plan.quantized:
            return self._entry("artefacts", self.key, self._make_qdq) / "qdq.onnx"
        return self._entry("fp32", self.key, self._make_fp32) / "fp32.onnx"

    @property
    def checkpoint(self) -> Path | None:
        """The quantized torch model; None where torch had no part in it."""
        path = self.graph.with_name("model.pt")
        return path if path.exists() else None

    @property
    def fp16(self) -> Path:
        """The graph with FP16 around its Q/DQ, which strongly typed engines are built from."""
        return self._entry("fp16", self._fp16_key, self._make_fp16) / "fp16.onnx"

    def engine(self, runtime: Runtime) -> Path:
        """Folder with the engine, its description and, after a repair, the graph it was built from.

        Of several tries it is the fastest.
        """
        tries = [self.build(runtime, number) for number in range(self.tries(runtime))]
        if len(tries) == 1:
            return tries[0]
        recipe = self.session.recipe
        depends_on = {"engines": [folder.name for folder in tries], "bench": recipe.bench.model_dump(mode="json")}

        def make(folder: Path) -> None:
            with self.session.stage("Time"):
                times_ms = time_tries([path / ENGINE for path in tries], recipe)
            (folder / "tries.json").write_text(json.dumps(times_ms))

        times_ms: list[float] = json.loads((self._entry("tries", depends_on, make) / "tries.json").read_text())
        kept = tries[times_ms.index(min(times_ms))]
        described = load_engine(kept / ENGINE)
        if described.tries_ms != tuple(times_ms):
            save_engine(replace(described, tries_ms=tuple(times_ms)))
        return kept

    def tries(self, runtime: Runtime) -> int:
        """How often an engine is built; what cannot run here cannot be compared either."""
        return self.session.recipe.engine.tries if runtime.target == "tensorrt" else 1

    def build(self, runtime: Runtime, number: int = 0, device: int | None = None) -> Path:
        """Build the engine once, where it is not in the cache.

        Args:
            runtime: What to build with.
            number: Number of the try; each has timing caches of its own.
            device: GPU to build on where it is not the run's own.
        """
        recipe = self.session.recipe
        settings = recipe.build_settings(runtime.target, self.session.model)
        depends_on = {
            "graph": self._fp16_key if runtime.strongly_typed else self.key,
            "settings": settings.model_dump(mode="json", exclude={"device"}),
            "repairs": recipe.engine.repairs,
            "runtime": runtime.key,
            "try": number,
        }
        caches = self.session.cache.root / "timing"
        # Builds side by side would overwrite each other's cache.
        parts = [f"try-{number}"] * (number > 0) + [f"gpu-{device}"] * (device is not None)

        def make(folder: Path) -> None:
            typed = self.fp16 if runtime.strongly_typed else None
            with self.session.stage("Build"):
                build(
                    self.graph,
                    folder / ENGINE,
                    settings if device is None else settings.model_copy(update={"device": device}),
                    runtime=runtime,
                    typed=typed,
                    image=self._image,
                    max_repairs=recipe.engine.repairs,
                    timing_caches=caches.joinpath(*parts),
                )

        return self._entry("engine", depends_on, make)

    def described_engine(self, runtime: Runtime) -> Engine:
        """What is known of the engine."""
        return load_engine(self.engine(runtime) / ENGINE)

    def open(self, target: Target) -> Backend:
        """Open on a target, built where it is not in the cache.

        Raises:
            BackendError: The runtime refuses the model.
        """
        recipe = self.session.recipe
        if target.engine is None:
            return open_file(self.graph, threads=target.threads, runtime=cast(CpuRuntime, target.name))
        path = self.engine(target.engine) / ENGINE
        return open_file(path, recipe.engine.trt_python, device=gpu_index(recipe.device))

    def evaluate(self, label: str, target: Target | None = None) -> Accuracy:
        """Accuracy on a target, on ONNX Runtime by default, from the cache where it is known."""
        session = self.session
        target = target or host_target(session.recipe)
        path = self.engine(target.engine) / ENGINE if target.engine else self.graph
        return evaluate_file(session, path, label, target)

    def check_parity(self, onnx: Accuracy, reference: Accuracy) -> Parity:
        """Hold the fake-quantized torch model of the plan against its ONNX file."""
        session, recipe = self.session, self.session.recipe

        def make(entry: Path) -> None:
            with session.stage("Parity"):
                module = self.module()
                accuracy = evaluate(
                    module,
                    session.data,
                    label="Evaluating torch",
                    device=session.device,
                    batch=recipe.batch,
                    table=False,
                )
                save_accuracy(accuracy, entry)
                layers = compare_layers(module, self.graph, self._image)
                (entry / "layers.json").write_text(json.dumps([asdict(found) for found in layers]))

        kind = session.device.partition(":")[0]
        entry = self._entry("parity", {**session.evaluation_key, "torch": self.key, "device": kind}, make)
        torch_accuracy = compare(load_accuracy(entry), reference.predictions)
        compared = tuple(Parting(**found) for found in json.loads((entry / "layers.json").read_text()))
        return check_parity(torch_accuracy, onnx, reference, compared, recipe.evaluation.max_parity_gap)

    def module(self) -> nn.Module:
        """The plan carried out on the torch model, see ``make_module``."""
        assert self.plan is not None
        return make_module(self.session, self.plan)

    def recovery(self) -> Recovery | None:
        """What the recovery of the quantized model came to; None where there was none."""
        if self.plan is None or not self.plan.quantized or not self.session.recipe.recover.enabled:
            return None
        _ = self.graph  # making it recovers the model
        return recovery_of(self.session, self.plan)

    @property
    def _fp16_key(self) -> dict[str, Any]:
        """The graph, and the image on which AutoCast looks for values beyond FP16."""
        return {"of": self.key, "image": self.session.calibration_batches(1).fingerprint}

    @property
    def _pixels_key(self) -> str:
        return self.session.calibration_batches(self.session.recipe.calibration.images).fingerprint

    @property
    def _image(self) -> np.ndarray:
        """One image, as often as a pass of the graph takes images."""
        image: np.ndarray = next(iter(self.session.calibration_batches(1)))["img"].cpu().numpy()
        return np.repeat(image, self.session.recipe.export.batch, axis=0)

    def _entry(self, stage: str, key: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        return self.session.cache.folder(stage, key, make)

    def _export(self, module: nn.Module, path: Path) -> None:
        recipe = self.session.recipe
        export_onnx(module, path, recipe.size, recipe.export.batch, dynamic=recipe.export.dynamic)

    def _make_fp32(self, folder: Path) -> None:
        with self.session.stage("Export FP32"):
            self._export(self.session.model.module, folder / "fp32.onnx")

    def _make_qdq(self, folder: Path) -> None:
        assert self.plan is not None
        session, recipe = self.session, self.session.recipe
        with session.stage("Quantize and export"):
            if self.plan.placement == "onnx":
                pixels = load_pixels(session.calibration_batches(recipe.calibration.images))
                ptq_plan(float_artefacts(session).graph, folder / "qdq.onnx", pixels, self.plan.quantized)
                return
            module = self.module()
            save_checkpoint(module, session.model, folder / "model.pt")
            self._export(module, folder / "qdq.onnx")
            if session.unsigned:
                make_unsigned(folder / "qdq.onnx")

    def _make_ptq(self, folder: Path) -> None:
        assert self.ptq is not None
        session = self.session
        with session.stage("Quantize the ONNX"):
            pixels = folder / "calibration.npy"
            batches = session.calibration_batches(session.recipe.calibration.images)
            ptq(float_artefacts(session).graph, folder / "ptq.onnx", save_calibration(batches, pixels), self.ptq)
            pixels.unlink()

    def _make_fp16(self, folder: Path) -> None:
        source = self.graph
        with self.session.stage("Convert to FP16"):
            convert_to_fp16(source, folder / "fp16.onnx", self._image)


def float_artefacts(session: Session) -> Artefacts:
    """The float model."""
    return Artefacts(session, None)


def ptq_artefacts(session: Session, method: PtqMethod) -> Artefacts:
    """The FP32 graph quantized by ModelOpt's ONNX path."""
    return Artefacts(session, None, PtqSettings(method=method))
