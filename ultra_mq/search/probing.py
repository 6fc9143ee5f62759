# SPDX-License-Identifier: AGPL-3.0-or-later
"""The models that are built and measured on a target to learn its latencies."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from ultra_mq.core import FLOAT, BackendError
from ultra_mq.plan import LatencyModel, PrecisionPlan, Probe, fit_latency, make_plan, probe_choices, uniform_plan
from ultra_mq.session import (
    Artefacts,
    Session,
    Target,
    calibrate_layers,
    float_artefacts,
    prices_of,
    time_artefacts,
)

PROFILED_RUNS = 20


def probe_plans(session: Session) -> dict[str, PrecisionPlan]:
    """Float, each format throughout, and float up to a stage or from a stage on."""
    model, recipe = session.model, session.recipe
    plans = {option: uniform_plan(model, option, recipe.placement) for option in (FLOAT, *recipe.formats)}
    prices = prices_of(session, "weights")
    for name, choice in probe_choices(plans[recipe.formats[0]].quantized, recipe.latency.probes).items():
        plans[name] = make_plan(model, choice, prices, budget_bits=16, why="user", placement=recipe.placement)
    return plans


def learn_latency(session: Session, target: Target) -> LatencyModel:
    """Measure the probes on the target and fit the prediction to them, from the cache where it is known.

    Raises:
        BackendError: The target runs none of the uniform models.
    """
    recipe = session.recipe
    depends_on = {
        **float_artefacts(session).key,
        "target": target.about,
        "runtime": target.name,
        "threads": target.threads,
        "engine": recipe.engine.model_dump(mode="json") if target.engine else None,
        "calibration": asdict(calibrate_layers(session)),
        "placement": recipe.placement,
        "formats": recipe.formats,
        "bench": recipe.bench.model_dump(mode="json"),
        "probes": recipe.latency.probes,
    }

    def make(folder: Path) -> None:
        learnt = _measure(session, target)
        (folder / "latency.json").write_bytes(TypeAdapter(LatencyModel).dump_json(learnt))

    entry = session.cache.folder("latency", depends_on, make)
    return TypeAdapter(LatencyModel).validate_python(json.loads((entry / "latency.json").read_text()))


def _measure(session: Session, target: Target) -> LatencyModel:
    artefacts = {name: Artefacts(session, plan) for name, plan in probe_plans(session).items()}
    measured = time_artefacts(session, artefacts, target)
    uniform = (FLOAT, *session.recipe.formats)
    if missing := [name for name in uniform if name not in measured.latencies]:
        raise BackendError(
            f"{target.title} could not run the model in {', '.join(missing)}, so no latency can be predicted: "
            f"{' '.join(measured.errors.values())} See the warnings above."
        )
    probes = []
    for name, latency in measured.latencies.items():
        made = artefacts[name]
        choice = made.plan.quantized if made.plan else {}
        if target.engine:
            repaired = made.described_engine(target.engine).repaired
            choice = {layer: option for layer, option in choice.items() if layer not in repaired}
        with session.stage("Profile"), closing(made.open(target)) as backend:
            kernels = backend.profile(PROFILED_RUNS)
        probes.append(Probe(name, choice, latency.p50_ms, kernels))
    return fit_latency(
        session.model,
        session.recipe.size,
        {"target": target.title, **target.about},
        probes,
        session.recipe.export.batch,
    )
