# SPDX-License-Identifier: AGPL-3.0-or-later
"""Plans held against their budgets on the target: what is predicted of each, and what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from ultra_mq.bench import Bench
from ultra_mq.cost import BITS_MODELS, CostModel, layer_sizes
from ultra_mq.errors import BudgetError
from ultra_mq.evaluate import Accuracy, compare, points_lost
from ultra_mq.plan import PrecisionPlan, make_plan, uniform_plan
from ultra_mq.probing import learn_latency
from ultra_mq.recipe import Metric, Variant
from ultra_mq.session import Session
from ultra_mq.solve import Choices, Measure, make_choices, solve_choice
from ultra_mq.stages import counted_bits, decision_groups, evaluate_onnx, make_fp32, score_layers
from ultra_mq.targets import Target, evaluate_plan, find_target, host_target, time_plans

FLOAT_STEP = "float"


@dataclass(frozen=True)
class Step:
    """One plan of a search.

    Attributes:
        name: Name in tables, and of its file in the run folder.
        plan: The plan.
        score: Sum of its scores.
        cost: Bits, or predicted milliseconds, in the cost model of the search.
        drop: Points lost in the metric of the search, negative for a gain; None where it was not evaluated.
        latency_ms: Median latency on the target, from the last comparison side by side; None where it was not timed.
        speedup_interval: 95 % interval of float's latency divided by this one's, from the same rounds.
    """

    name: str
    plan: PrecisionPlan = field(repr=False)
    score: float
    cost: float
    drop: float | None = None
    latency_ms: float | None = None
    speedup_interval: tuple[float, float] | None = None


@dataclass
class Verifier:
    """Makes the steps of a search and measures them.

    Attributes:
        session: The run.
        variant: Its budgets.
        target: Where plans are proven and timed.
        choices: What there is to choose, with scores and costs.
        metric: What a drop counts.
        reference: Accuracy of the float model.
        steps: Every plan that was measured, by name.
        predictions: Name to predicted and measured milliseconds, of plans that were timed.
    """

    session: Session
    variant: Variant
    target: Target
    choices: Choices
    metric: Metric
    reference: Accuracy
    steps: dict[str, Step] = field(default_factory=dict)
    predictions: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def cost_model(self) -> CostModel:
        """What the search keeps low."""
        return self.session.recipe.cost_model

    def step(self, name: str, choice: Mapping[str, str]) -> Step:
        """A plan with what is predicted of it."""
        plan = plan_of(self.session, self.choices, choice, self.variant.bits, self.variant.budgets)
        return Step(name, plan, self.choices.measure("score", choice), self.choices.measure(self.cost_model, choice))

    def uniform(self) -> Iterator[Step]:
        """Float, then every layer in each format."""
        yield self.step(FLOAT_STEP, {})
        for option in self.session.recipe.formats:
            yield self.step(option, uniform_plan(self.session.model, option).quantized)

    def evaluate(self, step: Step) -> Step:
        """Measure the loss of a plan on the target."""
        label = f"Evaluating {step.name}"
        found = compare(evaluate_plan(self.session, step.plan, self.target, label), self.reference.detections)
        return self._keep(replace(step, drop=points_lost(found, self.reference, self.metric)))

    def time(self, steps: list[Step]) -> Bench:
        """Time plans side by side, float first; the figures of the last comparison stand."""
        measured = time_plans(self.session, {step.name: step.plan for step in steps}, self.target)
        for reason in measured.noise:
            self.session.warn(f"The timing of the search is noisy: {reason}.")
        for step in steps:
            if latency := measured.latencies.get(step.name):
                known = self.steps.get(step.name, step)
                self._keep(replace(known, latency_ms=latency.p50_ms, speedup_interval=latency.speedup_interval))
                predicted = self.choices.measure("latency", step.plan.quantized)
                self.predictions[step.name] = (predicted, latency.p50_ms)
        return measured

    def limits(self) -> dict[Measure, float]:
        """The budgets that a solver can keep to by itself."""
        found: dict[Measure, float] = {}
        if self.variant.bits is not None:
            counted = counted_bits(self.session.recipe)
            cheapest = solve_choice(self.choices, counted, {}) or {}
            found[counted] = max(self.variant.bits, self.choices.measure(counted, cheapest))
        if budget := self.latency_budget_ms(self.choices.measure("latency", {}) if self.choices.latency else None):
            found["latency"] = budget
        return found

    def latency_budget_ms(self, float_ms: float | None) -> float | None:
        """The tighter one of the budgets of latency, for what the float model takes in the same terms."""
        found = [self.variant.max_latency_ms] if self.variant.max_latency_ms else []
        if self.variant.min_speedup and float_ms:
            found.append(float_ms / self.variant.min_speedup)
        return min(found, default=None)

    def holds(self, step: Step) -> bool:
        """Whether the measured figures of a step meet every budget."""
        if self.variant.max_drop is not None and (step.drop is None or step.drop > self.variant.max_drop):
            return False
        base = self.steps.get(FLOAT_STEP)
        budget = self.latency_budget_ms(base.latency_ms if base else None)
        return budget is None or (step.latency_ms is not None and step.latency_ms <= budget)

    def _keep(self, step: Step) -> Step:
        self.steps[step.name] = step
        return step


def open_verifier(session: Session, variant: Variant) -> Verifier:
    """Everything that a search needs: scores, costs, the target and the float model's accuracy.

    Raises:
        BudgetError: A loss of mAP is limited, and the data has no labels.
        BackendError: The target cannot be used here.
    """
    recipe = session.recipe
    labelled = session.data.evaluation.labelled
    metric: Metric = variant.metric or ("map" if labelled else "agreement")
    if metric == "map" and not labelled and variant.max_drop is not None:
        raise BudgetError(f"'{recipe.data}' has no labels to lose mAP on. Use --metric agreement.")
    timed = recipe.cost_model == "latency" or variant.max_latency_ms or variant.min_speedup
    # What is only counted is proven where every machine can, unless the recipe names a runtime.
    target = find_target(session) if timed or recipe.runtime != "auto" else host_target(session)
    reference = evaluate_onnx(session, make_fp32(session), "Evaluating FP32")
    choices = open_choices(session, target if timed else None)
    return Verifier(session, variant, target, choices, metric, reference)


def open_choices(session: Session, target: Target | None) -> Choices:
    """What there is to choose for a session: scores, sizes, groups, and latencies where there is a target."""
    return make_choices(
        session.model,
        score_layers(session),
        {name: layer_sizes(session.model, name, session.recipe.imgsz) for name in BITS_MODELS},
        decision_groups(session),
        learn_latency(session, target) if target else None,
    )


def plan_of(
    session: Session,
    choices: Choices,
    choice: Mapping[str, str],
    bits: float | None = None,
    budget: Mapping[str, float] | None = None,
) -> PrecisionPlan:
    """A choice of formats as a plan, with the budgets that it was made for."""
    recipe = session.recipe
    plan = make_plan(
        session.model,
        choice,
        choices.sizes[counted_bits(recipe)],
        budget_bits=bits,
        cost_model=recipe.cost_model,
        scores=choices.scores,
        data_fingerprint=session.calibration_batches(recipe.sensitivity.images).fingerprint,
        latency=choices.latency,
        budget=budget,
    )
    return replace(plan, placement=recipe.placement)
