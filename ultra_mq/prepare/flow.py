# SPDX-License-Identifier: AGPL-3.0-or-later
"""How tensors flow through a model: which operation of which module reads and makes them.

Recorded by running the model once, so that it holds for every family of YOLO without a table of its blocks.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

KINDS = {
    "conv": ("conv2d", "linear"),
    "cat": ("cat", "concat", "concatenate"),
    "add": ("add", "__add__", "__radd__", "__iadd__"),
    "pool": ("max_pool2d", "_max_pool2d"),
    "resize": ("interpolate",),
    "view": (
        "chunk", "split", "__getitem__", "view", "reshape", "permute", "transpose", "flatten", "contiguous",
        "unsqueeze", "squeeze", "dropout",
    ),
}  # fmt: skip
"""Kinds of operations by the names of torch's functions; all others are ``other``."""

KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}

SMALLEST_IMGSZ = 64
"""Pixels that a classifier needs, which has no stride: YOLO12 splits its smallest map into four areas."""


@dataclass(frozen=True)
class Op:
    """One operation of a forward pass.

    Attributes:
        kind: ``conv``, ``cat``, ``add``, ``pool``, ``resize``, ``view`` or ``other``.
        module: Path of the module whose forward pass does it.
        index: How many of the same kind that module did before, in the same call.
        inputs: Numbers of the tensors it reads, without weights.
        outputs: Numbers of the tensors it makes.
        builtin: Whether the module is one of torch's own, such as a pool, whose quantizer ModelOpt has.
    """

    kind: str
    module: str
    index: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    builtin: bool = False


Observer = Callable[[Op, "tuple[torch.Tensor, ...]"], None]


def trace_flow(module: nn.Module) -> tuple[Op, ...]:
    """Record the operations of one forward pass on a small black image; the flow does not depend on its size.

    Args:
        module: Float Ultralytics module.
    """
    import torch

    parameter = next(module.parameters())
    imgsz = _small_size(module)
    flow: list[Op] = []
    observe_flow(module, torch.zeros(1, channels_of(module), imgsz, imgsz).to(parameter), lambda op, _: flow.append(op))
    return tuple(flow)


def find_dead(module: nn.Module) -> set[str]:
    """Layers whose input is zero throughout on an image of noise, whose values no live layer would all make zero.

    Args:
        module: Float Ultralytics module.
    """
    import torch

    dead: set[str] = set()
    alive: set[str] = set()

    def look(op: Op, inputs: tuple[torch.Tensor, ...]) -> None:
        if op.kind == "conv":
            (alive if inputs[0].any() else dead).add(op.module)

    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, channels_of(module), *[_small_size(module)] * 2, generator=generator)
    observe_flow(module, images.to(next(module.parameters())), look)
    return dead - alive


def channels_of(module: nn.Module) -> int:
    """Channels of an input image, by the YAML that a network was built from."""
    return int(getattr(module, "yaml", {}).get("channels", 3))


def observe_flow(module: nn.Module, images: torch.Tensor, observer: Observer) -> None:
    """Run the model on images and show every operation with the tensors it reads.

    Tensors are numbered in the order of their appearance. Numbers of different passes do not compare: the head makes
    its anchors anew when the image size changes.

    Args:
        module: Float Ultralytics module.
        images: Float32 in [0, 1], shape (B, C, H, W).
        observer: Called after each operation.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    numbers: dict[int, int] = {}
    fresh = itertools.count()
    calls: list[tuple[str, Counter[str]]] = []
    builtin = {path for path, child in module.named_modules() if type(child).__module__.startswith("torch.nn.")}
    parameters = {id(parameter) for parameter in module.parameters()}

    def number(tensor: torch.Tensor) -> int:
        key = id(tensor)
        if key not in numbers:
            numbers[key] = next(fresh)
            # Python gives a freed tensor's id to another one; keeping all tensors alive would keep their memory too.
            weakref.finalize(tensor, numbers.pop, key, None).atexit = False
        return numbers[key]

    class Recorder(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            outputs = tuple(_tensors([result]))
            inputs = tuple(tensor for tensor in _tensors(args) if id(tensor) not in parameters)
            if inputs and outputs and calls:
                path, counts = calls[-1]
                kind = kind_of(func, inputs)
                op = Op(
                    kind, path, counts[kind], tuple(map(number, inputs)), tuple(map(number, outputs)), path in builtin
                )
                counts[kind] += 1
                observer(op, inputs)
            return result

    handles = []
    for path, child in module.named_modules():
        enter = functools.partial(lambda name, *_: calls.append((name, Counter())), path)
        handles += [child.register_forward_pre_hook(enter), child.register_forward_hook(lambda *_: _pop(calls))]
    try:
        with torch.no_grad(), Recorder():
            module(images)
    finally:
        for handle in handles:
            handle.remove()


def gather_inputs(module: Any, before: Any, outputs: Sequence[Any]) -> Any:
    """Input of a top-level module, as ``BaseModel._predict_once`` of Ultralytics puts it together.

    Args:
        module: Module of ``network.model``.
        before: What the module before it made.
        outputs: What every module before it made.
    """
    if module.f == -1:
        return before
    if isinstance(module.f, int):
        return outputs[module.f]
    return [before if source == -1 else outputs[source] for source in module.f]


def kind_of(func: Any, inputs: tuple[torch.Tensor, ...]) -> str:
    """Kind of a torch function; the sum of a tensor and a number is no join, and so is ``other``."""
    kind = KIND_OF.get(getattr(func, "__name__", ""), "other")
    return "other" if kind == "add" and len(inputs) < 2 else kind


def _small_size(module: nn.Module) -> int:
    """Pixels of a small square image that the model takes."""
    import torch

    return max(2 * int(getattr(module, "stride", torch.ones(1)).max()), SMALLEST_IMGSZ)


def _pop(calls: list[Any]) -> None:
    calls.pop()


def _tensors(values: Iterable[Any]) -> Iterable[torch.Tensor]:
    import torch

    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
