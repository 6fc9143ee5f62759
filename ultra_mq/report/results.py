# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a run found, as values: one ``VariantResult`` for each model, all of them in a ``Report``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ultra_mq.measure import TASK_METRICS, Accuracy, Bench, ClassLoss, Drop, Latency, Parity, TaskMetrics
from ultra_mq.plan import PrecisionPlan, Sensitivity
from ultra_mq.quantization import Recovery
from ultra_mq.report.gallery import Picture
from ultra_mq.runtimes import Engine, find_mismatches
from ultra_mq.search import Search
from ultra_mq.session import Metric, Recipe

SCHEMA = "ultra-mq/results/5"
"""Tag of results.json; 5 has the losses of every class, and pictures."""

ACCURACY = "accuracy"
"""Folder of a run folder that keeps the detections of every variant, to compare them later."""

ENGINE_FOLDER = "engine"
"""Folder below a variant's with the detections of its engine."""


def load_variants(results: Path) -> dict[str, dict[str, Any]]:
    """Variants of a results.json by name, the reference first.

    Raises:
        OSError, ValueError, KeyError, TypeError: It is not there, not one, or of another version.
    """
    document = json.loads(results.read_text())
    if document["schema"] != SCHEMA or not document["variants"]:
        raise ValueError(f"its schema is {document['schema']}, this version reads {SCHEMA}")
    return {str(entry["name"]): entry for entry in document["variants"]}


@dataclass(frozen=True)
class VariantResult:
    """One model that was made, and what was measured on it.

    Attributes:
        name: Name of the variant, ``fp32`` for the reference.
        onnx: ONNX file that was evaluated, relative to the run folder.
        onnx_fp16: Strongly typed graph for TensorRT, relative to the run folder; None for the reference.
        size_bytes: Size of ``onnx``.
        accuracy: What the validator measured.
        plan: Precision of every layer; None for the reference and for ModelOpt's ONNX path.
        parity: Fake-quantized torch against ONNX, where it was measured.
        latency: Latency on the CPU, where it was measured.
        build_from: Graph that an engine is built from where it is not ``onnx``, relative to the run folder.
        engine: TensorRT or TensorRT-RTX engine, where it was built.
        engine_accuracy: What the validator measured on a TensorRT engine; agreement is with the float model.
        engine_agreement: AP50-95 of the engine's detections with those of its ONNX file as ground truth.
        engine_latency: Latency on the GPU, side by side with the other engines.
        engine_error: Why there is no engine, or no figure of it.
        latency_error: Why there is no latency on the CPU.
        search: How the plan was found, where its budgets had to be measured.
        losses: Points lost against the float model with their intervals, of the task's metric and of agreement; of the
            engine where it was run, and of the ONNX file otherwise.
        class_losses: The same for every class, the largest first.
        recovery: What recovery came to, where the recipe wants it.
    """

    name: str
    onnx: str
    onnx_fp16: str | None
    size_bytes: int
    accuracy: Accuracy
    plan: PrecisionPlan | None = None
    parity: Parity | None = None
    latency: Latency | None = None
    build_from: str | None = None
    engine: Engine | None = None
    engine_accuracy: Accuracy | None = None
    engine_agreement: float | None = None
    engine_latency: Latency | None = None
    engine_error: str | None = None
    latency_error: str | None = None
    search: Search | None = None
    losses: dict[Metric, Drop] = field(default_factory=dict)
    class_losses: dict[Metric, tuple[ClassLoss, ...]] = field(default_factory=dict)
    recovery: Recovery | None = None

    @property
    def engine_mismatches(self) -> list[tuple[str, str, str]]:
        """Layers that the engine runs in another type than planned: name, planned, executed."""
        if self.engine is None or self.plan is None:
            return []
        return find_mismatches(self.plan.by_layer, self.engine.layer_types)


@dataclass(frozen=True)
class Report:
    """Everything a run found.

    Attributes:
        folder: Run folder.
        recipe: Resolved recipe.
        variants: The float reference first, then the variants of the recipe.
        sensitivity: Scores of the layers, where a variant needed them.
        outlook: What other budgets would do, from the same scores: bits, quantized layers, predicted loss of the
            plan in percent of the loss of quantizing everything.
        warnings: What the user should know.
        not_built: One line for each artefact that was not built, and how to get it.
        pictures: Images in which a variant and the float model part, and an even sample.
        pictured: Name of that variant.
        engine_bench: State of the GPU and noise while the engines were timed.
        versions: Versions of the packages involved.
        seconds: Stage to wall time.
    """

    folder: Path
    recipe: Recipe
    variants: tuple[VariantResult, ...]
    sensitivity: Sensitivity | None = None
    outlook: tuple[tuple[float, int, float], ...] = ()
    warnings: tuple[str, ...] = ()
    not_built: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    pictured: str | None = None
    engine_bench: Bench | None = None
    versions: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Model and data by their names, without the folders they lie in."""
        return f"{Path(self.recipe.model).name} on {Path(self.recipe.data).name}"

    @property
    def metrics(self) -> TaskMetrics:
        """What the figures of the model's task are called."""
        return TASK_METRICS[self.reference.accuracy.task]

    @property
    def reference(self) -> VariantResult:
        """The float model."""
        return self.variants[0]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values, detections left out."""
        variants = []
        for variant in self.variants:
            entry = asdict(variant)
            for accuracy, kept in ((variant.accuracy, "accuracy"), (variant.engine_accuracy, "engine_accuracy")):
                if accuracy:
                    del entry[kept]["predictions"]
                    entry[kept] |= {"main": accuracy.main, "second": accuracy.second}
            if variant.search:
                entry["search"]["rank_correlation"] = variant.search.rank_correlation
            for step in (*(entry["search"] or {}).get("steps", ()), (entry["search"] or {}).get("chosen", {})):
                step.pop("plan", None)
            entry["engine_mismatches"] = variant.engine_mismatches
            if variant.engine:
                entry["engine"]["path"] = variant.engine.path.name
            if variant.parity:
                entry["parity"]["holds"] = variant.parity.holds
            variants.append(entry)
        return {
            "schema": SCHEMA,
            "recipe": self.recipe.model_dump(mode="json"),
            "variants": variants,
            "sensitivity": asdict(self.sensitivity) if self.sensitivity else None,
            "outlook": [
                dict(zip(("bits", "quantized_layers", "predicted_loss_percent"), row, strict=True))
                for row in self.outlook
            ],
            "warnings": list(self.warnings),
            "not_built": list(self.not_built),
            "pictures": [asdict(picture) for picture in self.pictures],
            "pictured": self.pictured,
            "gpu": [asdict(state) if state else None for state in self.engine_bench.gpu] if self.engine_bench else None,
            "versions": self.versions,
            "seconds": {stage: round(value, 2) for stage, value in self.seconds.items()},
        }
