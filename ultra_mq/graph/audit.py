# SPDX-License-Identifier: AGPL-3.0-or-later
"""What keeps a Q/DQ graph from running in INT8 throughout, in the terms of the model and with what it costs.

``lint`` finds what breaks a graph; here is found what only makes it slow: the rules of ``placement`` held against a
graph that anybody made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ultra_mq.core import KernelTime
from ultra_mq.graph.lint import constant_array, lint_graph, made_by, made_from, quantized_layers
from ultra_mq.prepare import LAYER_OPS, layer_of

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

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
    import onnx_ir as ir

    graph = ir.from_proto(model).graph
    findings = [*_planned_in_float(graph, planned or {}), *_joins(graph), *_islands(graph), *_dangling(graph)]
    findings += [
        Finding(fault.rule, fault.node, layer_of(fault.node) or "graph", fault.message) for fault in lint_graph(model)
    ]
    timed = [_with_time(finding, kernels) for finding in findings]
    counts = {"layer": (len(quantized_layers(model)), len(_layers(graph)))}
    for kind, name in JOIN_NAMES.items():
        nodes = [node for node in graph if node.op_type == kind]
        counts[name] = (sum(all(_dequantized(node)) for node in nodes), len(nodes))
    return Audit(counts, tuple(sorted(timed, key=lambda finding: -(finding.ms or 0.0))))


def _layers(graph: ir.Graph) -> list[ir.Node]:
    """Layers that have a weight, not products of two tensors."""
    return [node for node in graph if node.op_type in LAYER_OPS and _is_weight(node.inputs[1])]


def _is_weight(value: ir.Value | None) -> bool:
    while made_by(value) in (*QDQ, "Cast", "Transpose"):
        value = made_from(value)
    return _is_constant(value)


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and (value.is_initializer() or made_by(value) == "Constant")


def _operands(node: ir.Node) -> list[ir.Value]:
    """What a node computes with: not the sizes of a Resize, nor a constant that is added."""
    inputs = node.inputs[:1] if node.op_type in ("MaxPool", "Resize") else node.inputs
    return [value for value in inputs if value is not None and not _is_constant(value)]


def _dequantized(node: ir.Node) -> list[bool]:
    """Whether each operand comes from DequantizeLinear."""
    return [made_by(value) == "DequantizeLinear" for value in _operands(node)]


def _neighbours(node: ir.Node, *, upstream: bool) -> list[ir.Node]:
    if upstream:
        return [made for value in node.inputs if value is not None and (made := value.producer()) is not None]
    return list(node.successors())


def _nearest_layers(node: ir.Node, *, upstream: bool) -> list[ir.Node]:
    """Layers before or behind a node, with no other layer between."""
    layers, queue, seen = [], _neighbours(node, upstream=upstream), set()
    while queue:
        other = queue.pop()
        if other in seen:
            continue
        seen.add(other)
        if other.op_type in LAYER_OPS:
            layers.append(other)
        else:
            queue += _neighbours(other, upstream=upstream)
    return layers


def _planned_in_float(graph: ir.Graph, planned: Mapping[str, str]) -> list[Finding]:
    nodes = {layer_of(str(node.name)): node for node in graph if node.op_type in LAYER_OPS}
    message = "the plan wants {}, and its input or weight is not quantized"
    return [
        Finding("planned-in-float", str(nodes[name].name) if name in nodes else "", name, message.format(wanted))
        for name, wanted in planned.items()
        if name not in nodes or not all(made_by(value) == "DequantizeLinear" for value in nodes[name].inputs[:2])
    ]


def _joins(graph: ir.Graph) -> list[Finding]:
    findings = []
    for node in graph:
        if node.op_type not in JOIN_NAMES:
            continue
        name = str(node.name)
        where = f"{layer_of(name)} ({JOIN_NAMES[node.op_type]})"
        operands, ready = _operands(node), _dequantized(node)
        if not operands or (node.op_type == "Add" and len(operands) < 2):
            continue
        if any(ready) and not all(ready):
            floats = ", ".join(str(operand.name) for operand, done in zip(operands, ready, strict=True) if not done)
            message = f"{ready.count(False)} of {len(ready)} operands are in float: {floats}"
            findings.append(Finding("float-operand", name, where, message))
        elif not any(ready) and _wanted_in_int8(node):
            message = "in float between INT8 layers, so reformatted before and after"
            findings.append(Finding("float-join", name, where, message))
        if node.op_type == "Concat" and all(ready):
            ends = [operand.producer() for operand in operands]
            ends += [reader for reader in node.successors() if reader.op_type in QDQ]
            if (count := len({_scale(end) for end in ends})) > 1:
                message = f"{count} scales meet here, so operands are rescaled"
                findings.append(Finding("unequal-scales", name, where, message))
    return findings


def _scale(node: ir.Node | None) -> bytes | None:
    """Value of the scale of a QuantizeLinear or DequantizeLinear: equal ones may stand under different names."""
    scale = constant_array(node.inputs[1]) if node is not None else None
    return None if scale is None else scale.tobytes()


def _wanted_in_int8(node: ir.Node) -> bool:
    before = _nearest_layers(node, upstream=True)
    return _is_quantized_later(node) and any(all(_dequantized(layer)[:1]) for layer in before)


def _is_quantized_later(node: ir.Node) -> bool:
    """Whether the result goes into QuantizeLinear, through other joins or at once."""
    return any(
        reader.op_type == "QuantizeLinear" or (reader.op_type in JOIN_NAMES and _is_quantized_later(reader))
        for reader in node.successors()
    )


def _islands(graph: ir.Graph) -> list[Finding]:
    """Layers in float whose neighbours on both sides are quantized."""
    message = "in float between INT8 layers, so reformatted before and after"
    findings = []
    for node in _layers(graph):
        around = [_nearest_layers(node, upstream=True), _nearest_layers(node, upstream=False)]
        if any(_dequantized(node)) or not all(around):
            continue
        if all(all(_dequantized(layer)) for side in around for layer in side):
            findings.append(Finding("island", str(node.name), layer_of(str(node.name)), message))
    return findings


def _dangling(graph: ir.Graph) -> list[Finding]:
    """Q/DQ that no INT8 kernel needs: they cost accuracy and two kernels."""
    useful = (*LAYER_OPS, *JOIN_NAMES, "AveragePool", "GlobalAveragePool", "Split", "Slice", "Reshape", "Transpose")
    findings = []
    for node in graph:
        types = sorted({reader.op_type for reader in node.successors()})
        if node.op_type == "DequantizeLinear" and not set(types) & {*useful, *QDQ}:
            message = f"a Q/DQ pair is read by {', '.join(types) or 'nothing'} only"
            findings.append(Finding("dangling", str(node.name), layer_of(str(node.name)), message))
    return findings


def _with_time(finding: Finding, kernels: Sequence[KernelTime]) -> Finding:
    if not kernels:
        return finding
    return replace(finding, ms=sum(kernel.ms for kernel in kernels if finding.node in kernel.nodes))
