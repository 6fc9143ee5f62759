# SPDX-License-Identifier: AGPL-3.0-or-later
"""Do the intervals of a loss hold what they promise? Small sets drawn from a larger one whose loss is known.

    python scripts/interval_coverage.py WEIGHTS data=DATA.yaml --images 114 --output docs/results/intervals.md

The images of val are the population; sets of ``--images`` are drawn from them without replacement. AP depends on how
many images there are, so that what an interval has to hold is the mean loss of all sets of that size. Sets that are a
large part of the population differ less than sets of new images would, for a mean by ``sqrt(1 - images / population)``:
intervals are counted as they are, and narrowed by as much.
"""

from __future__ import annotations

import numpy as np
from arguments import make_parser

from ultra_mq.core import write_text
from ultra_mq.jobs import autoquant_recipe
from ultra_mq.measure import Accuracy
from ultra_mq.measure.bootstrap import recentred
from ultra_mq.measure.scored import score_both
from ultra_mq.plan import uniform_plan
from ultra_mq.session import Artefacts, float_artefacts, open_session

LEVEL = 0.9


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--images", type=int, default=114, help="images of a set")
    parser.add_argument("--sets", type=int, default=200, help="number of sets")
    parser.add_argument("--resamples", type=int, default=100, help="resamples of each set")
    parser.add_argument("--metric", action="append", choices=("agreement", "map"), help="what is lost; both by default")
    arguments = parser.parse_args()
    session = open_session(autoquant_recipe(arguments.weights, {"bits": 8.0}, {}, arguments.overrides))
    reference = float_artefacts(session).evaluate("FP32")
    int8 = Artefacts(session, uniform_plan(session.model, "int8", session.recipe.placement)).evaluate("INT8")
    rows = [
        (metric, *cover(int8, reference, metric, arguments.images, arguments.sets, arguments.resamples))
        for metric in arguments.metric or ("agreement", "map")
    ]
    write_text(arguments.output, render(rows, reference.images, arguments))


def cover(
    model: Accuracy, reference: Accuracy, metric: str, images: int, sets: int, resamples: int
) -> tuple[float, float, float, float, float, float]:
    """Loss on all images, mean of the sets, its deviation and the bootstrap's, shares that hold: plain and narrowed."""
    scored, base = score_both(model.predictions, reference.predictions, metric)

    def lost(weights: np.ndarray) -> float:
        return 100 * (base.score(weights)[0] - scored.score(weights)[0])

    generator = np.random.default_rng(0)
    population = scored.images
    estimates, intervals, deviations = [], [], []
    for number in range(sets):
        drawn = np.zeros(population)
        drawn[generator.choice(population, images, replace=False)] = 1
        draws = np.array([lost(w.astype(float)) for w in generator.multinomial(images, drawn / images, resamples)])
        estimates.append(lost(drawn))
        intervals.append(recentred(draws, estimates[-1], LEVEL))
        deviations.append(draws.std(ddof=1))
        print(f"{metric}: set {number + 1} of {sets} loses {estimates[-1]:.2f}", flush=True)
    target, narrower = float(np.mean(estimates)), np.sqrt(1 - images / population)
    found = np.array(estimates)
    low, high = np.array(intervals).T

    def held(factor: float) -> float:
        return float(np.mean((found - factor * (found - low) <= target) & (target <= found + factor * (high - found))))

    deviation = float(np.mean(deviations))
    return lost(np.ones(population)), target, float(found.std()), deviation, held(1.0), held(narrower)


def render(rows: list[tuple[str, float, float, float, float, float, float]], population: int, arguments) -> str:
    """The page."""
    lines = [
        "# Do intervals hold what they promise?",
        "",
        f"Uniform INT8 against float. {arguments.sets} sets of {arguments.images} images out of {population}, drawn "
        f"without replacement; of each set the {100 * LEVEL:.0f} % interval from {arguments.resamples} resamples, as "
        f"it is, and narrowed for what sets of one population have in common.",
        "",
        "| metric | points lost on all | mean of the sets | their deviation | by the bootstrap | hold | narrowed |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {m} | {a:.2f} | {t:.2f} | {d:.2f} | {b:.2f} | {100 * h:.1f} % | {100 * n:.1f} % |"
            for m, a, t, d, b, h, n in rows
        ),
        "",
        f"    python scripts/interval_coverage.py WEIGHTS data=DATA --images {arguments.images}",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
