# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a checkpoint says of its quantization, as plain data that no later version has to guess at.

A checkpoint is a pickle, and a pickle finds classes by the path of their module. Ours holds the name
``ultra_mq.read_record`` and a dictionary, nothing else of this package: rooms may move, that name may not
(docs/stability.md).
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ultra_mq.core import ModelError
from ultra_mq.prepare import Placement
from ultra_mq.quantization.guards import refuse_to_forget

SCHEMA = "ultra-mq/quantization/1"


@dataclass(frozen=True)
class QuantizationRecord:
    """How a module was quantized; travels in its checkpoint as ``model.quantization``.

    Attributes:
        formats: Layer name to format, of the layers that are quantized.
        placement: Where Q/DQ stand beside the layers.
        blocks: Blocks of a user's own with quantized joins, ``module:Class`` each, which ModelOpt has to know.
    """

    formats: Mapping[str, str]
    placement: Placement
    blocks: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        document = {"schema": SCHEMA, "formats": dict(self.formats), "placement": self.placement}
        return read_record, ({**document, "blocks": list(self.blocks)},)


def read_record(document: Mapping[str, Any]) -> QuantizationRecord:
    """What a checkpoint calls when it is loaded; makes ModelOpt know the blocks whose joins are quantized.

    Args:
        document: What ``QuantizationRecord`` left in the checkpoint.

    Raises:
        ModelError: A later version wrote it.
    """
    from ultra_mq.quantization import blocks

    blocks.register()
    refuse_to_forget()
    for name in document.get("blocks", ()):
        module, _, kind = name.partition(":")
        found: Any = importlib.import_module(module)
        blocks.register_block(functools.reduce(getattr, kind.split("."), found))
    if document.get("schema") != SCHEMA:
        raise ModelError(
            f"The checkpoint says '{document.get('schema')}' of its quantization, which this version does not know. "
            f"Install the version of ultra-mq that wrote it, or a later one."
        )
    return QuantizationRecord(dict(document["formats"]), document["placement"], tuple(document.get("blocks", ())))


read_record.__module__ = "ultra_mq"


class Record010:
    """The record as 0.1.0 pickled it: a dataclass with a plan, under the name ``ultra_mq.quant_modules``."""

    def __new__(cls) -> Any:
        """Load what the checkpoint needs before anything else of it is read."""
        from ultra_mq.quantization import blocks

        blocks.register()
        refuse_to_forget()
        return super().__new__(cls)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(
            formats={layer.name: layer.format for layer in state["plan"].layers if layer.format != "fp16"},
            placement=state["placement"],
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return QuantizationRecord(self.__dict__["formats"], self.__dict__["placement"]).__reduce__()
