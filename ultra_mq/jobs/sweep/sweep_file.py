# SPDX-License-Identifier: AGPL-3.0-or-later
"""Sweep files: one recipe, what to vary in it, and what to judge it by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter, model_validator

from ultra_mq.core import Strict, SweepError, load_document, validate
from ultra_mq.jobs.sweep.trial import MEASURES
from ultra_mq.session import apply_override, make_recipe

Value = str | int | float | bool | None


class Range(Strict):
    """Numbers to choose from."""

    low: float = Field(description="Smallest value.")
    high: float = Field(description="Largest value.")
    step: float | None = Field(None, gt=0, description="Distance of the values; any value between where it is none.")
    log: bool = Field(False, description="Draw from the logarithm.")


class RaySettings(Strict):
    """Ray, for several GPUs or machines."""

    address: str | None = Field(None, description="Running cluster, such as `auto`; none starts Ray on this machine.")
    gpus_per_trial: float = Field(1, ge=0, description="GPUs that a trial has for itself.")
    cpus_per_trial: float = Field(1, gt=0, description="CPUs that a trial counts for.")


class Sweep(Strict):
    """A study: one recipe, what to vary in it, and what to judge it by."""

    base: dict[str, Any] = Field(description="Keys of a recipe with one variant, see docs/recipes.md.")
    space: dict[str, list[Value] | Range] = Field(
        min_length=1, description="Dotted key of the recipe, or `variant.<key>`, to a list of values or a range."
    )
    objectives: tuple[Literal["map", "agreement", "latency", "bits", "size"], ...] = Field(
        ("map", "latency"), min_length=1, description=f"What to judge by: {', '.join(f'`{m}`' for m in MEASURES)}."
    )
    trials: int = Field(12, ge=1, description="Trials in all, those of earlier runs among them.")
    sampler: Literal["nsga2", "tpe", "random"] = Field("nsga2", description="Optuna's sampler.")
    seed: int = Field(0, description="Seed of the sampler.")
    workers: int = Field(1, ge=1, description="Trials at once.")
    trial_timeout_s: float = Field(
        21600, gt=0, description="Seconds after which a trial is taken for hung and ended; it is started again."
    )
    storage: str | None = Field(None, description="URL of a database for the study; a journal file where it is none.")
    ray: RaySettings | None = Field(None, description="Run the trials by Ray.")
    project: str = Field("runs/sweep", description="Parent of the folder.")
    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="Name of the study and of its folder.")

    @model_validator(mode="after")
    def _space_is_not_fixed(self) -> Sweep:
        if "variants" in self.base and any(key.startswith("variant.") for key in self.space):
            raise ValueError("'variant.' keys vary the single variant; write it as 'variant' in 'base'")
        return self

    @property
    def folder(self) -> Path:
        """Folder of the study."""
        return Path(self.project) / self.name


def load_sweep(path: str | Path, overrides: list[str] | None = None) -> Sweep:
    """Read a sweep file; its name is the study's where the file has none.

    Raises:
        SweepError: The file is missing, is not YAML, or does not fit the schema.
    """
    document = load_document(path, "Sweep", "docs/budgets.md", SweepError)
    document.setdefault("name", Path(path).stem)
    for override in overrides or []:
        apply_override(document, override)
    sweep: Sweep = validate(TypeAdapter(Sweep), document, f"sweep '{path}'", SweepError)
    first = {key: options.low if isinstance(options, Range) else options[0] for key, options in sweep.space.items()}
    make_recipe(trial_document(sweep, first), where=f"a trial of '{path}'")
    return sweep


def trial_document(sweep: Sweep, values: dict[str, Any]) -> dict[str, Any]:
    """Recipe of a trial: the base with the values put in."""
    document = json.loads(json.dumps(sweep.base))
    variant = document.pop("variant", {})
    for key, value in values.items():
        target, path = (variant, key.removeprefix("variant.")) if key.startswith("variant.") else (document, key)
        *parents, last = path.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    if variant:
        document["variants"] = [{"name": "trial", **variant}]
    return dict(document)


def trial_folder(sweep: Sweep, number: int) -> Path:
    """Folder of a trial."""
    return (sweep.folder / "trials" / f"{number:04d}").resolve()
