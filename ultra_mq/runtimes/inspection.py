# SPDX-License-Identifier: AGPL-3.0-or-later
"""What an engine really became: layers, fused nodes, types, times, from each version's own account of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ultra_mq.core import FLOAT, FORMATS
from ultra_mq.prepare import layer_of

POINTWISE = "kgen"
"""TensorRT-RTX's generated kernels; they name the convolution before them, but convolve nothing."""

_CONVOLUTION = re.compile(r"/[\w./-]+/(?:Conv|Gemm|MatMul)(?:_\d+)?(?![\w/])")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine, which may stand for many ONNX nodes.

    Attributes:
        name: TensorRT's name.
        kind: TensorRT's layer type, such as ``CaskConvolution``.
        precision: Type it computes in: ``Int8``, ``FP8``, ``Half``, ``Float``, or empty where nothing tells.
        nodes: ONNX nodes that were fused into it, as far as the engine names them.
        reformat: Whether it only changes layout or type.
        ms: Mean time of one pass, where it was profiled.
    """

    name: str
    kind: str
    precision: str
    nodes: tuple[str, ...]
    reformat: bool
    ms: float | None = None


def read_inspector(text: str, layers_ms: Iterable[tuple[str, float]] = ()) -> tuple[EngineLayer, ...]:
    """Read the JSON of TensorRT's engine inspector, of 8.6, 10 and 11.

    Args:
        text: JSON; 8.6 leaves raw control characters in its strings.
        layers_ms: Profiled layer names and times.
    """
    times = dict(layers_ms)
    layers = []
    for described in json.loads(text, strict=False)["Layers"]:
        # An engine that was built without detailed profiling verbosity has names alone.
        entry = {"Name": described} if isinstance(described, str) else described
        name, kind = str(entry.get("Name", "")), str(entry.get("LayerType", ""))
        origin = f"{name} {entry.get('Metadata', '')}"
        nodes = _NODE.findall(origin) or _CONVOLUTION.findall(origin)
        layers.append(
            EngineLayer(
                name=name,
                kind=kind,
                precision=_precision(entry),
                nodes=tuple(dict.fromkeys(nodes)),
                reformat=kind in ("Reformat", "NoOp", "Copy") or "Reformatting CopyNode" in name,
                ms=times.get(name),
            )
        )
    return tuple(layers)


def read_rtx_table(table: str) -> tuple[EngineLayer, ...]:
    """Read the layer table that TensorRT-RTX's builder logs when it is done.

    The first constant of a kernel is its weights, so its type is the type that the kernel convolves in.

    Args:
        table: Message that begins with ``Layers:``.
    """
    layers = []
    for row in table.splitlines():
        name, kind = re.search(r"^Name: ([^,]+)", row), re.search(r"LayerType: (\w+)", row)
        if name is None or kind is None:
            continue
        weights = re.search(r"Constants: \[ \{.*?Datatype: (\w+)", row)
        nodes = tuple(_NODE.findall(row))
        precision = weights[1] if weights is not None and kind[1] != POINTWISE else ""
        layers.append(EngineLayer(name[1], kind[1], precision, nodes, reformat="reformat" in kind[1].lower()))
    return tuple(layers)


def executed_types(layers: Iterable[EngineLayer]) -> dict[str, str]:
    """Module path of every convolution to the type it runs in."""
    return {name: layer.precision for name, layer in _convolutions(layers)}


def layer_times(layers: Iterable[EngineLayer]) -> dict[str, float]:
    """Module path of every convolution to the milliseconds of the engine layer that it is part of."""
    return {name: layer.ms for name, layer in _convolutions(layers) if layer.ms is not None}


def find_mismatches(planned: Mapping[str, str], executed: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Layers that an engine runs in another type than planned: name, planned, executed.

    DFL is part of box decode, which is kept in FP32 on purpose. A float layer that no kernel is named after was fused
    into another kind of kernel, as a classifier's last layer is.

    Args:
        planned: Layer name to format.
        executed: Layer name to TensorRT's name of a type, see ``executed_types``.
    """
    return [
        (name, option, executed.get(name, "missing"))
        for name, option in planned.items()
        if executed.get(name, "missing") not in (FORMATS[option].executed, *(("missing",) if option == FLOAT else ()))
        and ".dfl." not in name
    ]


def _convolutions(layers: Iterable[EngineLayer]) -> Iterator[tuple[str, EngineLayer]]:
    for layer in layers:
        if layer.precision and not layer.reformat:
            for node in layer.nodes:
                if _CONVOLUTION.fullmatch(node):
                    yield layer_of(node), layer


def _precision(entry: Mapping[str, Any]) -> str:
    weights = entry.get("Weights")
    if isinstance(weights, Mapping) and weights.get("Type"):
        return _type_name(str(weights["Type"]))
    for tensor in entry.get("Inputs") or ():
        if isinstance(tensor, Mapping):
            # Up to 10 one field says layout and type; 11 has a field for each.
            return _type_name(str(tensor.get("Datatype") or tensor.get("Format/Datatype") or ""))
    return ""


def _type_name(text: str) -> str:
    text = text.lower()
    for marks, name in ((("int8",), "Int8"), (("fp8",), "FP8"), (("half", "fp16"), "Half"), (("bf16",), "BF16")):
        if any(mark in text for mark in marks):
            return name
    return "Float" if "float" in text or "fp32" in text else ""
