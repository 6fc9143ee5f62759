# SPDX-License-Identifier: AGPL-3.0-or-later
"""Plans held against their budgets on the target: what is predicted of each, and what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from ultra_mq.core import BudgetError, announce
from ultra_mq.measure import Accuracy, Bench, ClassLoss, Drop, bootstrap_classes, compare, find_broken_classes
from ultra_mq.plan import Choices, CostModel, Measure, PrecisionPlan, learn_from, make_plan, solve_choice
from ultra_mq.prepare import uniform_formats
from ultra_mq.search.probing import learn_latency
from ultra_mq.session import (
    Artefacts,
    Metric,
    Session,
    Target,
    Variant,
    choose_metric,
    counted_bits,
    float_artefacts,
    host_target,
    open_choices,
    prices_of,
    signed,
    time_artefacts,
)

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
        loss: The same with its interval.
        broken_classes: Classes that are seen to lose more than a class may; empty where that is not limited.
        agreement: Agreement with the float model, in [0, 1].
        predicted_ms: Latency predicted before it was measured; None where that does not count.
        latency_ms: Median latency on the target, from the last comparison side by side; None where it was not timed.
        speedup: Float's latency divided by this one's, from the same rounds; 1 for float itself. Milliseconds of
            different comparisons do not compare, a machine is faster at one time than at another; these do.
        speedup_interval: 95 % interval of ``speedup``.
    """

    name: str
    plan: PrecisionPlan = field(repr=False)
    score: float
    cost: float
    drop: float | None = None
    loss: Drop | None = None
    broken_classes: tuple[ClassLoss, ...] = ()
    agreement: float | None = None
    predicted_ms: float | None = None
    latency_ms: float | None = None
    speedup: float | None = None
    speedup_interval: tuple[float, float] | None = None

    def keeps(self, limit: float) -> bool:
        """Whether it loses no more than a limit by the estimate, and no class more than one may."""
        return self.drop is not None and self.drop <= limit and not self.broken_classes


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
        predicted = self.choices.latency.predict(choice) if self.choices.latency else None
        return Step(
            name,
            plan,
            self.choices.measure("score", choice),
            self.choices.measure(self.cost_model, choice),
            predicted_ms=predicted,
        )

    def uniform(self) -> Iterator[Step]:
        """Float, then every layer in each format."""
        yield self.step(FLOAT_STEP, {})
        for option in self.session.recipe.formats:
            yield self.step(option, uniform_formats(self.session.model, option))

    def evaluate(self, step: Step) -> Step:
        """Measure the loss of a plan on the target."""
        accuracy, loss, classes = self._measure_loss(step, self.target)
        known = self.steps.get(step.name, step)
        broken = find_broken_classes(classes, self.variant.max_drop_per_class)
        lost = f"{loss.points:.2f} points lost ({loss.low:.2f} to {loss.high:.2f})"
        if broken:
            lost += f", too many by {', '.join(one.name for one in broken)}"
        announce(f"{step.name}: {len(step.plan.quantized)} layers quantized, {lost}")
        measured = replace(known, drop=loss.points, loss=loss, broken_classes=broken, agreement=accuracy.agreement)
        return self._keep(measured)

    def loss_of_graph(self, step: Step) -> Drop:
        """Points that a plan loses on ONNX Runtime, where no engine has to be built for it."""
        return self._measure_loss(step, host_target(self.session.recipe))[1]

    def last_build_seconds(self) -> float:
        """What building the last engine took, which tells what the next one will; 0 where nothing is built."""
        timed = [step for step in self.steps.values() if step.latency_ms is not None]
        if self.target.engine is None or not timed:
            return 0.0
        return Artefacts(self.session, timed[-1].plan).described_engine(self.target.engine).build_seconds

    def comparable_ms(self, step: Step) -> float:
        """Latency of a step in the milliseconds of the float model that all predictions are in; infinite if unknown."""
        latency = self.choices.learnt_latency()
        return (latency.float_ms or latency.predict({})) / step.speedup if step.speedup else math.inf

    def _measure_loss(self, step: Step, target: Target) -> tuple[Accuracy, Drop, tuple[ClassLoss, ...]]:
        session = judging_session(self.session, self.metric)
        accuracy = Artefacts(session, step.plan).evaluate(f"Evaluating {step.name}", target)
        compared = compare(accuracy, self.reference.predictions)
        return compared, *bootstrap_classes(compared, self.reference, self.metric, self.session.model.names)

    def time(self, steps: list[Step]) -> Bench:
        """Time plans side by side, float first; the figures of the last comparison stand."""
        artefacts = {step.name: Artefacts(self.session, step.plan) for step in steps}
        measured = time_artefacts(self.session, artefacts, self.target)
        for step in steps:
            if latency := measured.latencies.get(step.name):
                known = self.steps.get(step.name, step)
                speedup = 1.0 if step.name == measured.reference else latency.speedup
                timed = replace(known, latency_ms=latency.p50_ms, speedup=speedup)
                self._keep(replace(timed, speedup_interval=latency.speedup_interval))
                self._learn(self.steps[step.name])
        return measured

    def _learn(self, step: Step) -> None:
        """Correct the prediction by a plan that was measured, in the milliseconds of the float model that it knows."""
        latency = self.choices.latency
        if latency is None or step.speedup is None or not step.plan.quantized:
            return
        if any(known.name == step.name for known in latency.timed):
            return
        latency_ms = self.comparable_ms(step)
        if step.name not in self.predictions and step.predicted_ms is not None:
            announce(f"{step.name}: {latency_ms:.4g} ms ({step.speedup:.3f}x), {step.predicted_ms:.4g} ms predicted")
            self.predictions[step.name] = (step.predicted_ms, latency_ms)
        if latency.timed:
            learnt = learn_from(latency, step.name, step.plan.quantized, latency_ms)
            self.choices = replace(self.choices, latency=learnt)

    def limits(self) -> dict[Measure, float]:
        """The budgets that a solver can keep to by itself."""
        limits: dict[Measure, float] = {}
        if self.variant.bits is not None:
            counted = counted_bits(self.session.recipe)
            cheapest = solve_choice(self.choices, counted, {}) or {}
            limits[counted] = max(self.variant.bits, self.choices.measure(counted, cheapest))
        if budget := self.latency_budget_ms(self.choices.measure("latency", {}) if self.choices.latency else None):
            limits["latency"] = budget
        return limits

    def latency_budget_ms(self, float_ms: float | None) -> float | None:
        """The tighter one of the budgets of latency, for what the float model takes in the same terms."""
        budgets = [self.variant.max_latency_ms] if self.variant.max_latency_ms else []
        if self.variant.min_speedup and float_ms:
            budgets.append(float_ms / self.variant.min_speedup)
        return min(budgets, default=None)

    def holds(self, step: Step) -> bool:
        """Whether the measured figures of a step meet every budget."""
        variant = self.variant
        if variant.max_drop is not None and not self.keeps_loss(step):
            return False
        if variant.max_latency_ms and (step.latency_ms is None or step.latency_ms > variant.max_latency_ms):
            return False
        return not variant.min_speedup or (step.speedup is not None and step.speedup >= variant.min_speedup)

    def keeps_loss(self, step: Step) -> bool:
        """Whether a step loses no more than allowed: by the estimate, or as surely as the variant asks for."""
        limit, confidence = self.variant.max_drop, self.variant.confidence
        if limit is None:
            return False
        if confidence is None or step.loss is None:
            return step.keeps(limit)
        return not step.broken_classes and step.loss.judge(limit, confidence) == "holds"

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
    metric = choose_metric(variant.metric, labelled=labelled)
    if metric == "map" and not labelled and variant.max_drop is not None:
        raise BudgetError(f"'{recipe.data}' has no labels to lose mAP on. Use --metric agreement.")
    timed = recipe.cost_model == "latency" or variant.max_latency_ms or variant.min_speedup
    # What is only counted is proven where every machine can, unless the recipe names a runtime.
    target = session.target if timed or recipe.runtime != "auto" else host_target(recipe)
    reference = float_artefacts(judging_session(session, metric)).evaluate("Evaluating FP32")
    choices = open_choices(session, learn_latency(session, target) if timed else None)
    return Verifier(session, variant, target, choices, metric, reference)


def judging_session(session: Session, metric: Metric) -> Session:
    """The session whose images a metric is counted on: agreement needs no labels, so that it can take more of them."""
    return session.judged if metric == "agreement" else session


def plan_of(
    session: Session,
    choices: Choices,
    choice: Mapping[str, str],
    bits: float | None = None,
    budget: Mapping[str, float] | None = None,
) -> PrecisionPlan:
    """A choice of formats as a plan, with the budgets that it was made for."""
    prices = prices_of(session, session.recipe.cost_model, choices.latency)
    plan = make_plan(session.model, choice, prices, budget_bits=bits, scores=choices.scores)
    return signed(session, plan, budget)
