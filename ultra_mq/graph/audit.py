# SPDX-License-Identifier: AGPL-3.0-or-later
"""What keeps a Q/DQ graph from running in INT8 throughout, in the terms of the model and with what it costs.

``lint`` finds what breaks a graph; here is found what only makes it slow: the rules of ``placement`` held against a
graph that anybody made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ultra_mq.core import KernelTime
from ultra_mq.graph.lint import lint_graph, quantized_layers
from ultra_mq.graph.tidy import constant_bytes
from ultra_mq.prepare import LAYER_OPS, layer_of

if TYPE_CHECKING:
    import onnx

JOIN_NAMES = {"Add": "residual add", "Concat": "concat", "MaxPool": "pool", "Resize": "upsampling"}
"""Operators that a runtime computes in INT8 if all their operands are, by the name that a reader knows."""

QDQ = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Finding:
    """One place where a graph loses speed, or accuracy for nothing.

    Attributes:
        rule: Short name of the rule.
        node: ONNX node at fault.
        where: Module path with the operation, such as ``model.2.m.0 (residual add)``.
        message: What is wrong and what it costs.
        ms: Measured time of the engine's layers there, reformats included; None without a profile.
    """

    rule: str
    node: str
    where: str
    message: str
    ms: float | None = None


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        counts: Kind of operation to how many of it are quantized and how many there are.
        findings: What is wrong, the costly first where a profile is at hand.
    """

    counts: dict[str, tuple[int, int]]
    findings: tuple[Finding, ...]


def audit_graph(
    model: onnx.ModelProto, planned: Mapping[str, str] | None = None, kernels: Sequence[KernelTime] = ()
) -> Audit:
    """Hold a graph against the rules of placement.

    Args:
        model: ONNX model with Q/DQ.
        planned: Layer name to format, of the layers that the graph should quantize.
        kernels: Profiled layers of an engine that was built from it.
    """
    graph = _Graph(model)
    findings = [*_planned_in_float(model, planned or {}), *_joins(graph), *_islands(graph), *_dangling(graph)]
    findings += [
        Finding(fault.rule, fault.node, layer_of(fault.node) or "graph", fault.message) for fault in lint_graph(model)
    ]
    timed = [_with_time(finding, kernels) for finding in findings]
    counts = {"layer": (len(quantized_layers(model)), len(graph.of_type(LAYER_OPS, weighted=True)))}
    for kind, name in JOIN_NAMES.items():
        nodes = graph.of_type((kind,))
        counts[name] = (sum(all(graph.dequantized(node)) for node in nodes), len(nodes))
    return Audit(counts, tuple(sorted(timed, key=lambda finding: -(finding.ms or 0.0))))


class _Graph:
    """A graph with its edges."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.constants = constant_bytes(model.graph)
        self.producers = {output: node for node in self.nodes for output in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def of_type(self, types: Iterable[str], *, weighted: bool = False) -> list[onnx.NodeProto]:
        """Nodes of some types; with ``weighted`` only those that have a weight."""
        found = [node for node in self.nodes if node.op_type in tuple(types)]
        return [node for node in found if not weighted or self._is_weight(node.input[1])]

    def operands(self, node: onnx.NodeProto) -> list[str]:
        """What a node computes with: not the sizes of a Resize, nor a constant that is added."""
        inputs = list(node.input[:1]) if node.op_type in ("MaxPool", "Resize") else list(node.input)
        return [name for name in inputs if name not in self.constants]

    def dequantized(self, node: onnx.NodeProto) -> list[bool]:
        """Whether each operand comes from DequantizeLinear."""
        sources = [self.producers.get(name) for name in self.operands(node)]
        return [source is not None and source.op_type == "DequantizeLinear" for source in sources]

    def scale(self, name: str) -> str | None:
        """Name of the scale of a tensor that comes from DequantizeLinear."""
        source = self.producers.get(name)
        return source.input[1] if source is not None and source.op_type == "DequantizeLinear" else None

    def layers_before(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Nearest layers upstream of a node."""
        return self._nearest([self.producers.get(name) for name in node.input], upstream=True)

    def layers_after(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """Nearest layers downstream of a node."""
        return self._nearest([reader for name in node.output for reader in self.readers.get(name, [])], upstream=False)

    def _nearest(self, start: Sequence[onnx.NodeProto | None], *, upstream: bool) -> list[onnx.NodeProto]:
        found, queue, seen = [], list(start), set()
        while queue:
            node = queue.pop()
            if node is None or node.output[0] in seen:
                continue
            seen.add(node.output[0])
            if node.op_type in LAYER_OPS:
                found.append(node)
            elif upstream:
                queue += [self.producers.get(name) for name in node.input]
            else:
                queue += [reader for name in node.output for reader in self.readers.get(name, [])]
        return found

    def _is_weight(self, name: str) -> bool:
        while (source := self.producers.get(name)) is not None and source.op_type in (*QDQ, "Cast", "Transpose"):
            name = source.input[0]
        return name in self.constants


def _planned_in_float(model: onnx.ModelProto, planned: Mapping[str, str]) -> list[Finding]:
    quantized = quantized_layers(model)
    nodes = {layer_of(node.name): node.name for node in model.graph.node if node.op_type in LAYER_OPS}
    message = "the plan wants {}, and its input or weight is not quantized"
    return [
        Finding("planned-in-float", nodes.get(name, ""), name, message.format(wanted))
        for name, wanted in planned.items()
        if name not in quantized
    ]


def _joins(graph: _Graph) -> list[Finding]:
    found = []
    for node in graph.of_type(JOIN_NAMES):
        name = JOIN_NAMES[node.op_type]
        where = f"{layer_of(node.name)} ({name})"
        operands, ready = graph.operands(node), graph.dequantized(node)
        if not operands or (node.op_type == "Add" and len(operands) < 2):
            continue
        if any(ready) and not all(ready):
            floats = ", ".join(operand for operand, done in zip(operands, ready, strict=True) if not done)
            message = f"{ready.count(False)} of {len(ready)} operands are in float: {floats}"
            found.append(Finding("float-operand", node.name, where, message))
        elif not any(ready) and _wanted_in_int8(graph, node):
            message = "in float between INT8 layers, so reformatted before and after"
            found.append(Finding("float-join", node.name, where, message))
        if node.op_type == "Concat" and all(ready):
            scales = {graph.scale(operand) for operand in operands}
            scales |= {reader.input[1] for reader in graph.readers.get(node.output[0], []) if reader.op_type in QDQ}
            if (count := len({graph.constants.get(scale or "") for scale in scales})) > 1:
                message = f"{count} scales meet here, so operands are rescaled"
                found.append(Finding("unequal-scales", node.name, where, message))
    return found


def _wanted_in_int8(graph: _Graph, node: onnx.NodeProto) -> bool:
    return _is_quantized_later(graph, node) and any(all(graph.dequantized(n)[:1]) for n in graph.layers_before(node))


def _is_quantized_later(graph: _Graph, node: onnx.NodeProto) -> bool:
    """Whether the result goes into QuantizeLinear, through other joins or at once."""
    readers = [reader for name in node.output for reader in graph.readers.get(name, [])]
    return any(
        reader.op_type == "QuantizeLinear" or (reader.op_type in JOIN_NAMES and _is_quantized_later(graph, reader))
        for reader in readers
    )


def _islands(graph: _Graph) -> list[Finding]:
    """Layers in float whose neighbours on both sides are quantized."""
    message = "in float between INT8 layers, so reformatted before and after"
    found = []
    for node in graph.of_type(LAYER_OPS, weighted=True):
        around = [graph.layers_before(node), graph.layers_after(node)]
        if any(graph.dequantized(node)) or not all(around):
            continue
        if all(all(graph.dequantized(layer)) for side in around for layer in side):
            found.append(Finding("island", node.name, layer_of(node.name), message))
    return found


def _dangling(graph: _Graph) -> list[Finding]:
    """Q/DQ that no INT8 kernel needs: they cost accuracy and two kernels."""
    useful = (*LAYER_OPS, *JOIN_NAMES, "AveragePool", "GlobalAveragePool", "Split", "Slice", "Reshape", "Transpose")
    found = []
    for node in graph.of_type(("DequantizeLinear",)):
        readers = graph.readers.get(node.output[0], [])
        if not any(reader.op_type in (*useful, *QDQ) for reader in readers):
            types = ", ".join(sorted({reader.op_type for reader in readers})) or "nothing"
            found.append(Finding("dangling", node.name, layer_of(node.name), f"a Q/DQ pair is read by {types} only"))
    return found


def _with_time(finding: Finding, kernels: Sequence[KernelTime]) -> Finding:
    if not kernels:
        return finding
    return replace(finding, ms=sum(kernel.ms for kernel in kernels if finding.node in kernel.nodes))
