# SPDX-License-Identifier: AGPL-3.0-or-later
"""ModelOpt quant modules for the blocks of Ultralytics: they quantize the operands of their joins.

``register`` makes ModelOpt know them. A checkpoint holds a ``QuantizationRecord``, whose reading does that, so that
``YOLO("quantized.pt")`` finds the classes without a word in the user's code.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from ultralytics.nn.modules import block, conv, transformer

from ultra_mq.core import quiet
from ultra_mq.prepare import kind_of

with quiet():
    from modelopt.torch.quantization.nn import QuantModule, QuantModuleRegistry, TensorQuantizer


class QuantBlock(QuantModule):  # type: ignore[misc]
    """A block whose own concats, adds and upsamplings have quantized operands.

    The operations are found while the block's forward pass runs, in the order that ``flow.trace_flow`` saw them, so
    no block has to be rewritten. ``quantized_joins`` names the quantizers; it is a plain attribute of the block and
    so survives in a checkpoint, where it tells which quantizers to make.
    """

    def _setup(self) -> None:
        for name in getattr(self, "quantized_joins", ()):
            self._register_temp_attribute(name, TensorQuantizer())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block's own forward pass with its joins quantized."""
        return self._with_quantized_joins(super().forward, args, kwargs)

    def forward_split(self, *args: Any, **kwargs: Any) -> Any:
        """The same for the variant that Ultralytics' exporter puts in place of ``forward``."""
        return self._with_quantized_joins(super().forward_split, args, kwargs)

    def _with_quantized_joins(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mode = _QuantizeJoins(self) if getattr(self, "quantized_joins", ()) else None
        _running.blocks.append(mode)
        try:
            with mode or contextlib.nullcontext():
                return forward(*args, **kwargs)
        finally:
            _running.blocks.pop()


class _QuantizeJoins(TorchFunctionMode):
    """Quantizes the operands of the joins that one block does itself, not those of its children."""

    def __init__(self, owner: nn.Module) -> None:
        super().__init__()
        self.owner = owner
        self.done: Counter[str] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if _running.blocks[-1] is self:
            kind = kind_of(func, tuple(value for value in args if isinstance(value, torch.Tensor)))
            index = self.done[kind]
            self.done[kind] += 1
            if kind == "cat":
                args = ([self._quantize(f"cat{index}_quantizer", operand) for operand in args[0]], *args[1:])
            elif kind == "add":
                operands = [self._quantize(f"add{index}_quantizer{i}", operand) for i, operand in enumerate(args[:2])]
                args = (*operands, *args[2:])
            elif kind in ("resize", "pool"):
                args = (self._quantize(f"{kind}{index}_quantizer", args[0]), *args[1:])
        return func(*args, **(kwargs or {}))

    def _quantize(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        quantizer = getattr(self.owner, name, None)
        quantized: torch.Tensor = tensor if quantizer is None else quantizer(tensor)
        return quantized


class _Running(threading.local):
    """The blocks whose forward pass runs now, the innermost last, None for one without joins; of this thread."""

    def __init__(self) -> None:
        self.blocks: list[_QuantizeJoins | None] = []


_running = _Running()


@functools.cache
def register() -> None:
    """Make ModelOpt know the blocks of Ultralytics; once a process."""
    for module in (block, conv, transformer):
        for name, found in sorted(vars(module).items()):
            own = inspect.isclass(found) and found.__module__ == module.__name__ and "forward" in vars(found)
            # Ultralytics replaces the forward pass of what it fuses, which a quant module would undo.
            if own and issubclass(found, nn.Module) and not hasattr(found, "forward_fuse"):
                QuantModuleRegistry.register({found: f"ultralytics.{name}"})(QuantBlock)
    QuantModuleRegistry.register({nn.Upsample: "nn.Upsample"})(QuantBlock)


def register_block(kind: type[nn.Module]) -> bool:
    """Make ModelOpt know a block of a user's own.

    Args:
        kind: Its class.

    Returns:
        Whether its joins can be quantized: its forward pass must be that of the class.
    """
    register()
    if kind not in QuantModuleRegistry:
        if hasattr(kind, "forward_fuse"):
            return False
        QuantModuleRegistry.register({kind: f"{kind.__module__}.{kind.__qualname__}"})(QuantBlock)
    return issubclass(QuantModuleRegistry[kind], QuantBlock)


# ModelOpt looks for the device of a module without weights, such as a concat, among its weights. Ultralytics moves the
# restored model as a whole.
warnings.filterwarnings("ignore", message="Could not identify the device for TensorQuantizer states")
