# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where INT8 and mixed plans pay: speed over float of models of every size at several batches, with a picture.

    python scripts/latency_by_size.py data=DATA runtime=tensorrt --batches 1 8 32 --output docs/results/sizes.md

Networks have random weights, made from Ultralytics' YAML: latency alone is measured, in turns, with float as reference.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from ultralytics import YOLO

from ultra_mq.core import FLOAT, write_text
from ultra_mq.measure import Bench
from ultra_mq.plan import PrecisionPlan, make_plan, structural_choices, uniform_plan
from ultra_mq.runtimes import keep_builders
from ultra_mq.session import Artefacts, Session, make_recipe, open_session, prices_of, time_artefacts

SETTINGS = ["calibration.images=4", "calibration.method=max", "calibration.bias_correction=0", "name=sizes"]
MIXED = "float to model.2"


@keep_builders()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--models", nargs="+", default=["yolo11n", "yolo11s", "yolo11m", "yolo11x"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    found: dict[tuple[str, int], Bench] = {}
    title = ""
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            weights = make_weights(name, Path(folder), arguments.overrides)
            for batch in arguments.batches:
                overrides = [*SETTINGS, *arguments.overrides, f"export.batch={batch}"]
                variants = [{"name": "int8", "precision": "int8"}]
                session = open_session(make_recipe({"model": str(weights), "variants": variants}, overrides))
                title = session.target.title
                artefacts = {plan: Artefacts(session, made) for plan, made in plans_of(session).items()}
                found[name, batch] = time_artefacts(session, artefacts, session.target)
                # As results come, so that an interruption loses none.
                write_text(arguments.output, render(found, title))
                plot(found, title, arguments.output.with_suffix(".png"))


def make_weights(name: str, folder: Path, overrides: list[str]) -> Path:
    """A checkpoint with random weights and the class names of the data."""
    from ultralytics.data.utils import check_det_dataset

    data = next(text.partition("=")[2] for text in overrides if text.startswith("data="))
    yolo = YOLO(f"{name}.yaml", task="detect")
    yolo.model.names = check_det_dataset(data)["names"]
    yolo.save(folder / f"{name}.pt")
    return folder / f"{name}.pt"


def plans_of(session: Session) -> dict[str, PrecisionPlan]:
    """Float, INT8, and INT8 but for the first three stages."""
    placement = session.recipe.placement
    plans = {option: uniform_plan(session.model, option, placement) for option in (FLOAT, "int8")}
    choice = structural_choices(plans["int8"].quantized)[MIXED]
    prices = prices_of(session, "weights")
    plans[MIXED] = make_plan(session.model, choice, prices, budget_bits=16, why="user", placement=placement)
    return plans


def render(found: dict[tuple[str, int], Bench], title: str) -> str:
    """A page with one row a model and batch."""
    lines = [
        "# Where INT8 pays, by size and batch",
        "",
        f"{title}; random weights, in turns, speed over float with 95 % intervals.",
        "",
        f"| model | batch | float, ms | INT8 | {MIXED} |",
        "|---|---|---|---|---|",
    ]
    for (name, batch), bench in found.items():
        cells = [f"{bench.latencies[FLOAT].p50_ms:.4g}" if FLOAT in bench.latencies else bench.errors.get(FLOAT, "-")]
        for plan in ("int8", MIXED):
            latency = bench.latencies.get(plan)
            interval = latency.speedup_interval if latency else None
            words = f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
            cells.append(
                f"{latency.speedup:.3f}{words}" if latency and latency.speedup else bench.errors.get(plan, "-")
            )
        lines.append(f"| {name} | {batch} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "![The same as a picture](sizes.png)", ""])


def plot(found: dict[tuple[str, int], Bench], title: str, path: Path) -> None:
    """Speed over float by model, a line for each plan and batch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(1.0, color="#888888", linewidth=1)
    models = list(dict.fromkeys(name for name, _ in found))
    for batch in dict.fromkeys(batch for _, batch in found):
        for plan, style in (("int8", "o-"), (MIXED, "s--")):
            points = [
                (index, latency.speedup)
                for index, name in enumerate(models)
                if (bench := found.get((name, batch))) and (latency := bench.latencies.get(plan)) and latency.speedup
            ]
            axes.plot(*zip(*points, strict=True), style, label=f"{plan}, batch {batch}") if points else None
    axes.set_xticks(range(len(models)), models)
    axes.set_ylabel("speed over float")
    axes.set_title(title, loc="left", fontsize=9)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
