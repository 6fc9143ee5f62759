# SPDX-License-Identifier: AGPL-3.0-or-later
"""Is the searched plan better than chance? Plans of equal bits, same images, same calibration.

    python scripts/controls.py WEIGHTS data=DATA.yaml --bits 10 --output docs/results/controls-10bit.md

Controls: random plans, and "first layers kept" (float from the input on, as far as the bits reach).
"""

from __future__ import annotations

import random

from arguments import make_parser

from ultra_mq.core import write_text
from ultra_mq.jobs import autoquant_recipe
from ultra_mq.measure import compare, evaluate
from ultra_mq.plan import PrecisionPlan, make_plan, weight_prices
from ultra_mq.session import Artefacts, Session, open_session, plan_variant


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--bits", type=float, default=10.0)
    parser.add_argument("--plans", type=int, default=20, help="number of random plans")
    arguments = parser.parse_args()
    recipe = autoquant_recipe(arguments.weights, {"bits": arguments.bits}, {}, arguments.overrides)
    session = open_session(recipe)
    order = [layer.name for layer in session.model.quantizable]
    plans = {"searched": plan_variant(session, recipe.variants[0])}
    plans["first layers kept"] = plan_in_order(session, order, arguments.bits)
    for seed in range(arguments.plans):
        shuffled = random.Random(seed).sample(order, len(order))
        plans[f"random {seed}"] = plan_in_order(session, shuffled, arguments.bits)
    reference = evaluate_module(session, session.model.module, "FP32")
    rows = []
    for name, plan in plans.items():
        accuracy = compare(evaluate_module(session, Artefacts(session, plan).module(), name), reference.predictions)
        rows.append((name, plan.bits, len(plan.quantized), accuracy.agreement, accuracy.main))
        print(*rows[-1], flush=True)
    write_text(arguments.output, render(arguments.bits, reference.images, reference.main, rows))


def plan_in_order(session: Session, order: list[str], bits: float) -> PrecisionPlan:
    """Leave layers in float in the given order, each one that still fits into the budget."""
    prices = weight_prices(session.model)
    sizes = prices.sizes
    choice = dict.fromkeys(sizes, "int8")
    room = (bits - 8) * sum(sizes.values())
    for name in order:
        if 8 * sizes[name] <= room:
            room -= 8 * sizes[name]
            del choice[name]
    return make_plan(session.model, choice, prices, budget_bits=bits, why="user")


def evaluate_module(session: Session, module, label: str):
    """Validate a torch module on the evaluation split."""
    return evaluate(module, session.data, label=label, device=session.device, batch=session.recipe.batch)


def render(bits: float, images: int, float_map: float | None, rows: list) -> str:
    """The table, best agreement first, and the count that matters."""
    searched = rows[0][3]
    beaten = sum(searched > row[3] for row in rows[2:])
    lines = [
        f"# Controls at {bits:g} bits",
        "",
        f"{images} images, fake-quantized torch, FP32 mAP50-95 {100 * (float_map or 0):.2f}. The searched plan beats "
        f'{beaten} of {len(rows) - 2} random plans of the same bits, and "first layers kept" by '
        f"{searched - rows[1][3]:+.4f} of agreement.",
        "",
        "| plan | bits | INT8 layers | agreement | mAP50-95 |",
        "|---|---|---|---|---|",
    ]
    for name, reached, count, agreement, map50_95 in sorted(rows, key=lambda row: -row[3]):
        lines.append(f"| {name} | {reached:.3f} | {count} | {agreement:.4f} | {100 * (map50_95 or 0):.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
