# SPDX-License-Identifier: AGPL-3.0-or-later
"""Label-free recovery: a quantized network learns again what the float one says, in minutes and on few images.

Weights, biases and the ranges of activations are tuned so that outputs, and what the head reads, come close to the
float network's on letterboxed calibration images. The rounding of the forward pass has no gradient; the
straight-through estimator stands in for it (Bengio et al. 2013), and for ranges that of learned step sizes (Esser et
al. 2020, "Learned Step Size Quantization").

Experimental: on YOLO11n at 8 bits it gained 1.3 points of agreement in a training of the default length, and no more
than chance in short ones (``docs/results/recovery.md``).
Training proper, with labels and augmentation, is ``ultra_mq.QAT``.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ultra_mq.core import ModelError, atomic_path, progress, write_text
from ultra_mq.prepare import ANCHOR_EXTRAS, Batches
from ultra_mq.quantization.learnable_ranges import learnable_ranges

if TYPE_CHECKING:
    import torch
    from torch import nn

HELD_OUT_SHARE = 0.2
"""Share of the images that are not learnt from, by which the best epoch is chosen."""

PREDICTIONS = ("scores", "boxes", *ANCHOR_EXTRAS, "proto")
"""Names of a head's raw outputs that are compared."""

STATE = "recovered.pt"
PARTIAL = "unfinished.pt"


@dataclass(frozen=True)
class RecoveryRates:
    """Learning rates of Adam at the start; they fall to zero by a cosine.

    Attributes:
        weights: Of weights.
        biases: Of biases.
        log_ranges: Of the logarithms of activation ranges; tensors that share a range share its logarithm.
    """

    weights: float = 1e-5
    biases: float = 1e-4
    log_ranges: float = 1e-3


@dataclass(frozen=True)
class Recovery:
    """What a recovery came to.

    Attributes:
        losses: Loss on the held-out images, before the first epoch and after each.
        kept: Number of the epoch that was kept; 0 is the network as it was.
    """

    losses: tuple[float, ...]
    kept: int


def recover(
    module: nn.Module,
    reference: nn.Module,
    images: Batches,
    epochs: int = 20,
    rates: RecoveryRates | None = None,
    seed: int = 0,
    resume: Path | None = None,
) -> Recovery:
    """Tune a quantized network to the float one, in place; it never ends with a larger held-out loss than it began.

    Args:
        module: Network with ModelOpt's quantizers, in eval mode, its normalization fused.
        reference: The float network.
        images: Images to learn from; a fifth of them is held out.
        epochs: Passes over the images, each image flipped left to right by chance.
        rates: Learning rates.
        seed: Seed of order and flips.
        resume: Folder of an interrupted recovery with the same arguments, which goes on from its last epoch.

    Raises:
        ModelError: There are fewer than two batches of images, or the loss is not finite.
    """
    import torch

    batches = [batch["img"] for batch in images]
    held_out = batches[-max(1, round(HELD_OUT_SHARE * len(batches))) :]
    learnt = batches[: len(batches) - len(held_out)]
    if not learnt:
        raise ModelError("Recovery needs two batches of images at least. Pass more images, or a smaller batch.")
    rates = rates or RecoveryRates()
    generator = torch.Generator().manual_seed(seed)
    with learnable_ranges(module) as ranges:
        groups = _parameters(module, ranges, rates)
        optimizer = torch.optim.Adam(groups)
        steps = epochs * len(learnt)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / max(steps, 1), 1.0)))
        )
        parameters = [parameter for group in groups for parameter in group["params"]]
        teacher = _Answers(reference)
        student = _Answers(module)
        losses = [_held_out_loss(student, teacher, held_out)]
        best = [parameter.detach().clone() for parameter in parameters]
        kept = 0
        state = _Saved(resume, parameters, optimizer, schedule, generator)
        if (before := state.load()) is not None:
            losses, kept, best = before
        with progress("Recovering", epochs) as advance:
            advance(len(losses) - 1)
            for epoch in range(len(losses), epochs + 1):
                for index in torch.randperm(len(learnt), generator=generator).tolist():
                    flipped = bool(torch.rand((), generator=generator) < 0.5)
                    batch = learnt[index].flip(-1) if flipped else learnt[index]
                    loss = _distance(student(batch), teacher(batch, grad=False))
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    schedule.step()
                losses.append(_held_out_loss(student, teacher, held_out))
                if not math.isfinite(losses[-1]):
                    break
                if losses[-1] < losses[kept]:
                    kept, best = epoch, [parameter.detach().clone() for parameter in parameters]
                state.save(losses, kept, best)
                advance(1)
        with torch.no_grad():
            for parameter, value in zip(parameters, best, strict=True):
                parameter.copy_(value)
        if not math.isfinite(losses[0]):
            raise ModelError("The quantized network's outputs are not finite. Check its plan and its calibration.")
    module.zero_grad(set_to_none=True)
    return Recovery(tuple(losses), kept)


def save_recovery(module: nn.Module, recovery: Recovery, folder: Path) -> None:
    """Write a recovered network's weights and ranges into a folder, and what the recovery came to."""
    import torch

    state = {name: value.cpu() for name, value in module.state_dict().items() if value is not None}
    torch.save(state, folder / STATE)
    write_text(folder / "recovery.json", json.dumps(asdict(recovery)))


def load_recovered(module: nn.Module, folder: Path) -> None:
    """Give a quantized network the weights and ranges that ``save_recovery`` wrote."""
    import torch

    module.load_state_dict(torch.load(folder / STATE, map_location="cpu", weights_only=True), strict=False)


def load_recovery(folder: Path) -> Recovery:
    """Read what a recovery came to."""
    found = json.loads((folder / "recovery.json").read_text())
    return Recovery(tuple(found["losses"]), found["kept"])


class _Answers:
    """What a network says to images: its raw outputs, and what its head reads."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.head_inputs: list[torch.Tensor] = []

    def __call__(self, images: torch.Tensor, *, grad: bool = True) -> tuple[Any, list[torch.Tensor]]:
        import torch

        from ultra_mq.quantization.distillation import raw_outputs

        def keep(_: Any, inputs: tuple[Any, ...]) -> None:
            found = inputs[0]
            self.head_inputs = list(found) if isinstance(found, (list, tuple)) else [found]

        handle = self.module.model[-1].register_forward_pre_hook(keep)  # type: ignore[index, union-attr]
        try:
            with torch.set_grad_enabled(grad):
                return raw_outputs(self.module(images)), self.head_inputs
        finally:
            handle.remove()


def _distance(found: tuple[Any, list[torch.Tensor]], wanted: tuple[Any, list[torch.Tensor]]) -> torch.Tensor:
    """Squared error of outputs and of the head's inputs, each in units of the float network's own variance."""
    import torch

    pairs = [*zip(found[1], wanted[1], strict=True), *zip(_tensors(found[0]), _tensors(wanted[0]), strict=True)]
    return torch.stack([(one - other).square().mean() / other.var() for one, other in pairs]).sum()


def _tensors(outputs: Any) -> list[torch.Tensor]:
    """Raw outputs of a head that are predictions: by name, or a classifier's logits."""
    return [outputs[name] for name in PREDICTIONS if name in outputs] if isinstance(outputs, dict) else [outputs]


def _held_out_loss(student: _Answers, teacher: _Answers, batches: Sequence[torch.Tensor]) -> float:
    losses = [_distance(student(batch, grad=False), teacher(batch, grad=False)) for batch in batches]
    return float(sum(losses)) / len(losses)


def _parameters(module: nn.Module, ranges: Sequence[torch.nn.Parameter], rates: RecoveryRates) -> list[dict[str, Any]]:
    weights: list[torch.nn.Parameter] = []
    biases: list[torch.nn.Parameter] = []
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(".dfl." not in f".{name}")
        if parameter.requires_grad:
            (biases if parameter.ndim == 1 else weights).append(parameter)
    found = [(weights, rates.weights), (biases, rates.biases), (list(ranges), rates.log_ranges)]
    return [{"params": params, "lr": rate} for params, rate in found if params and rate]


class _Saved:
    """Progress of a recovery in a folder, so that it can be taken up again."""

    def __init__(self, folder: Path | None, parameters: Sequence[Any], *stateful: Any) -> None:
        self.path = folder / PARTIAL if folder else None
        self.parameters, self.stateful = parameters, stateful

    def save(self, losses: Sequence[float], kept: int, best: Sequence[torch.Tensor]) -> None:
        import torch

        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        *others, generator = self.stateful
        state = {
            "losses": list(losses),
            "kept": kept,
            "best": list(best),
            "now": [parameter.detach() for parameter in self.parameters],
            "others": [copy.deepcopy(other.state_dict()) for other in others],
            "generator": generator.get_state(),
        }
        with atomic_path(self.path) as temporary:
            torch.save(state, temporary)

    def load(self) -> tuple[list[float], int, list[torch.Tensor]] | None:
        import torch

        if self.path is None or not self.path.exists():
            return None
        state = torch.load(self.path, map_location=self.parameters[0].device, weights_only=True)
        with torch.no_grad():
            for parameter, value in zip(self.parameters, state["now"], strict=True):
                parameter.copy_(value)
        *others, generator = self.stateful
        for other, values in zip(others, state["others"], strict=True):
            other.load_state_dict(values)
        generator.set_state(state["generator"].cpu())
        return state["losses"], state["kept"], state["best"]
