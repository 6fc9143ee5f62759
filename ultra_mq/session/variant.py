# SPDX-License-Identifier: AGPL-3.0-or-later
"""One model of a recipe: its precision, or the budgets that decide it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from ultra_mq.core import FormatName, Strict
from ultra_mq.graph import PtqMethod
from ultra_mq.session.recipe_sections import METRIC_HELP, PER_CLASS_HELP, Metric

Precision = Literal["fp16", "mixed", "ptq"] | FormatName


class Variant(Strict):
    """One model to make and prove."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name in files and tables; it begins with a letter or digit.",
    )
    precision: Precision = Field(
        "mixed",
        description="`fp16`, uniform `int8` or `fp8`, `mixed` under the budget `bits`, or `ptq`: INT8 by ModelOpt's "
        "ONNX path.",
    )
    bits: float | None = Field(
        None, description="Budget of a `mixed` variant: bits averaged over the weights, 8 (all INT8) to 16."
    )
    max_drop: float | None = Field(
        None, ge=0, description="Budget of a `mixed` variant: points of the metric that may be lost, 0.5 say."
    )
    confidence: float | None = Field(
        None,
        gt=0.5,
        lt=1,
        description="How sure a plan must be to keep to `max_drop`, 0.9 say; by default the estimate decides, and the "
        "report says how sure it is.",
    )
    metric: Metric | None = Field(
        None,
        description=f"What `max_drop` counts: {METRIC_HELP}",
    )
    max_drop_per_class: float | None = Field(
        None,
        ge=0,
        description=f"Budget of a `mixed` variant. {PER_CLASS_HELP} Alone it is `max_drop` too: the mean loses no "
        "more than the class that loses most.",
    )
    max_latency_ms: float | None = Field(
        None, gt=0, description="Budget of a `mixed` variant: median milliseconds, at most."
    )
    min_speedup: float | None = Field(
        None, gt=0, description="Budget of a `mixed` variant: float's median latency divided by its own, at least."
    )
    method: PtqMethod = Field("max", description="Calibration of a `ptq` variant: `max` or `entropy`.")

    @property
    def budgets(self) -> dict[str, float]:
        """Budgets that need measured models, by name."""
        found = {
            "max_drop": self.max_drop,
            "max_drop_per_class": self.max_drop_per_class,
            "max_latency_ms": self.max_latency_ms,
            "min_speedup": self.min_speedup,
        }
        return {name: value for name, value in found.items() if value is not None}

    @model_validator(mode="before")
    @classmethod
    def _no_class_loses_more_than_the_mean_may(cls, document: Any) -> Any:
        if (
            isinstance(document, dict)
            and document.get("max_drop") is None
            and document.get("max_drop_per_class") is not None
        ):
            return {**document, "max_drop": document["max_drop_per_class"]}
        return document

    @model_validator(mode="after")
    def _budgets_belong_to_mixed(self) -> Variant:
        if self.confidence is not None and self.max_drop is None:
            raise ValueError("confidence says how sure max_drop must be kept to, and there is no max_drop")
        budgets = [*self.budgets, *(["bits"] if self.bits is not None else [])]
        if bool(budgets) != (self.precision == "mixed"):
            raise ValueError(
                "precision 'mixed' needs a budget (bits, max_drop, max_drop_per_class, max_latency_ms or min_speedup), "
                "and no other has one"
            )
        return self
