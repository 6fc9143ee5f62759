# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether a graph computes what the torch model does, layer by layer and block by block on the same inputs.

End to end the two always part a little: a value on the border between two steps falls to one side in torch and to the
other in ONNX, and that grows from layer to layer. So every layer is given the very tensors that the graph gives it, and
what stands between the layers of a block the outputs that they have there: all that can differ is a rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ultra_mq.graph import has_fp8
from ultra_mq.prepare import LAYER_OPS, gather_inputs, layer_of

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn

STEPS = 127
"""Steps from zero to the largest value of a tensor in INT8."""

LIMIT = 0.05
"""Median difference of a channel, in steps of its tensor, at which a layer or a block is said to part. A rounding that
falls to the other side changes a few values of a channel; a wrong scale or operator changes most."""

COARSE_LIMIT = 0.5
"""The same for blocks with FP8 (E4M3): its steps are up to nine of these, so a rounding is passed on as a large one."""

WEIGHT_LIMIT = 1.5
"""Difference of a weight in its steps at which a layer is said to part: torch multiplies by 127 over the range where
the graph divides by a scale, so that a weight on the border between two steps may fall to either side."""

QDQ = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Parting:
    """A layer or block that gives something else in torch than in the graph, from the same input.

    Attributes:
        name: Module path.
        steps: Largest median difference of a channel, in steps of the tensor: its largest value over 127.
        weight_steps: Largest difference of a weight in its steps; 0 for a block.
        limit: Steps at which it parts.
    """

    name: str
    steps: float
    weight_steps: float = 0.0
    limit: float = LIMIT

    @property
    def parts(self) -> bool:
        """Whether it cannot be rounding alone."""
        return self.steps > self.limit or self.weight_steps > WEIGHT_LIMIT


def compare_layers(module: nn.Module, path: Path, images: np.ndarray) -> tuple[Parting, ...]:
    """Give every layer and block of a torch model the tensors that its graph gives it, and compare what comes out.

    Args:
        module: Fake-quantized Ultralytics module in eval mode.
        path: Its ONNX file.
        images: Float32 in [0, 1], shape (N, C, H, W); N is the graph's batch where that is fixed.

    Returns:
        Every layer and block that could be compared, in the order of the forward pass, with its difference.
    """
    import onnx
    import onnxruntime
    import torch

    graph = onnx.load(str(path))
    layers, blocks = _layer_tensors(graph.graph), _block_tensors(graph.graph, module)
    wanted = dict.fromkeys([*(name for tensors in layers.values() for name in tensors), *blocks.values()])
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    inputs, outputs = graph.graph.input[0].name, [output.name for output in graph.graph.output]
    for name in wanted:
        if name not in (inputs, *outputs) and name not in constants:
            graph.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # As it is written: the runtime's own fusions round otherwise.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [name for name in dict.fromkeys([*wanted, outputs[0]]) if name != inputs and name not in constants]
    values = constants | dict(zip(names, session.run(names, {inputs: images}), strict=True)) | {inputs: images}
    network = copy.deepcopy(module).cpu().float().eval()
    found: list[Parting] = []
    with torch.no_grad():
        for name, (source, weight, result) in layers.items():
            layer: Any = network.get_submodule(name)
            weight_steps = _take_weight(layer, values[weight])
            found.append(Parting(name, _distance(layer(_tensor(values[source])), values[result]), weight_steps))
        inner = _hold_layers(network, layers, values)
        found += _compare_blocks(network, blocks, inner, values, images, outputs[0])
    return tuple(
        sorted(found, key=lambda parting: [int(part) if part.isdigit() else -1 for part in parting.name.split(".")])
    )


def _hold_layers(
    network: Any, layers: Mapping[str, tuple[str, str, str]], values: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Let every layer give what it gives in the graph, so that no rounding is passed on from layer to layer.

    Returns:
        Block to the largest distance of what its layers read from what they read in the graph; it fills as the
        network runs.
    """
    inner: dict[str, float] = {}

    def hold(block: str, source: np.ndarray, result: np.ndarray) -> Any:
        def compare(_: Any, inputs: tuple[Any, ...], output: Any) -> Any:
            if inputs[0].shape == source.shape:
                inner[block] = max(inner.get(block, 0.0), _distance(inputs[0], source))
            return _tensor(result) if output.shape == result.shape else output

        return compare

    for name, (source, _, result) in layers.items():
        hook = hold(".".join(name.split(".")[:2]), values[source], values[result])
        network.get_submodule(name).register_forward_hook(hook)
    return inner


def _compare_blocks(
    network: Any,
    blocks: Mapping[int, str],
    inner: Mapping[str, float],
    values: Mapping[str, np.ndarray],
    images: np.ndarray,
    output: str,
) -> Iterator[Parting]:
    """Blocks of the network on the outputs that the graph's blocks before them have."""
    known: list[Any] = []
    before: Any = _tensor(images)
    last = len(network.model) - 1
    limit = COARSE_LIMIT if has_fp8(network) else LIMIT
    for number, block in enumerate(network.model):
        sources = [block.f] if isinstance(block.f, int) else block.f
        absolute = [number - 1 if source == -1 else source for source in sources]
        result = values.get(blocks[number]) if number in blocks else values[output] if number == last else None
        given = all(source < 0 or known[source] is not None for source in absolute)
        if result is not None and given and not (number == last and getattr(network, "end2end", False)):
            made = block(gather_inputs(block, before, known))
            while isinstance(made, (tuple, list)):
                made = made[0]
            if tuple(made.shape) == result.shape:
                name = f"model.{number}"
                yield Parting(name, max(_distance(made, result), inner.get(name, 0.0)), limit=limit)
        before = _tensor(result) if result is not None and number != last else None
        known.append(before)


def _take_weight(layer: Any, weight: np.ndarray) -> float:
    """Give a layer the weight of the graph, so that its outputs compare, and say how far its own was, in steps."""
    import torch

    quantizer: Any = getattr(layer, "weight_quantizer", None)
    quantized = quantizer is not None and quantizer.is_enabled
    own = quantizer(layer.weight) if quantized else layer.weight
    given = _tensor(weight)
    # Largest value of each output channel, which the scale is made from.
    step = (layer.weight.abs().flatten(1).amax(1) / STEPS).clamp(min=1e-12)
    if quantized and quantizer.amax is not None:
        step = torch.maximum(step, quantizer.amax.flatten().float() / STEPS)
        quantizer.disable()
    distance = ((own - given).abs().flatten(1).amax(1) / step).max()
    layer.weight.data.copy_(given)
    return float(distance)


def _distance(made: torch.Tensor, wanted: np.ndarray) -> float:
    """Largest median difference of a channel, in steps of the tensor."""
    difference = np.abs(made.numpy() - wanted)
    step = float(np.abs(wanted).max()) / STEPS
    axes = tuple(axis for axis in range(difference.ndim) if axis != 1)
    return float(np.median(difference, axes).max()) / step if step else float(difference.max() > 0) * STEPS


def _tensor(values: np.ndarray) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.array(values, np.float32))


def _layer_tensors(graph: onnx.GraphProto) -> dict[str, tuple[str, str, str]]:
    """Layer to the tensors that it reads, before it is quantized, multiplies by, and makes."""
    producers = {name: node for node in graph.node for name in node.output}
    found: dict[str, tuple[str, str, str]] = {}
    for node in graph.node:
        # A MatMul is a product of two tensors, as in attention, or has its bias elsewhere.
        if node.op_type not in LAYER_OPS or node.op_type == "MatMul":
            continue
        source = node.input[0]
        dequantize = producers.get(source)
        if dequantize is not None and dequantize.op_type == QDQ[1]:
            quantize = producers.get(dequantize.input[0])
            source = quantize.input[0] if quantize is not None and quantize.op_type == QDQ[0] else source
        found[layer_of(node.name)] = (source, node.input[1], node.output[0])
    return found


def _block_tensors(graph: onnx.GraphProto, module: Any) -> dict[int, str]:
    """Number of a block before the head to the one tensor that blocks after it read, where there is one."""
    consumers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)

    def readers(tensor: str) -> Iterator[int | None]:
        for node in consumers.get(tensor, ()):
            if node.op_type in QDQ:
                yield from readers(node.output[0])
            else:
                yield _block_of(node.name)

    made: dict[int, set[str]] = {}
    for node in graph.node:
        block = _block_of(node.name)
        # A constant may be a scale that later blocks share.
        if block is None or node.op_type in (*QDQ, "Constant"):
            continue
        for tensor in node.output:
            if any(reader is not None and reader > block for reader in readers(tensor)):
                made.setdefault(block, set()).add(tensor)
    head = len(module.model) - 1
    return {block: tensors.pop() for block, tensors in made.items() if len(tensors) == 1 and block < head}


def _block_of(node: str) -> int | None:
    parts = layer_of(node).split(".")
    return int(parts[1]) if len(parts) > 1 and parts[0] == "model" and parts[1].isdigit() else None
