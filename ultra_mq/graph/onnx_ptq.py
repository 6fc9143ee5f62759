# SPDX-License-Identifier: AGPL-3.0-or-later
"""Quantization of an ONNX file by ModelOpt: for those who have no checkpoint, and the baseline to beat."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ultra_mq.core import DataError, ExportError, PlanError, atomic_path, quiet, write_text
from ultra_mq.graph.onnx_file import Graph, copy_metadata, input_shape, load_graph, save_graph
from ultra_mq.prepare import LAYER_OPS, Batches, ImageSize, height_width, layer_of

if TYPE_CHECKING:
    import onnx

Mode = Literal["int8", "fp8"]
PtqMethod = Literal["max", "entropy"]
Preset = Literal["nohead", "everything", "extreme"]

HEAD = (r".*\.2/Conv$", r".*/dfl/.*")
"""The head's output convolutions and DFL, which Ultralytics' own TensorRT 11 export leaves in float."""

EXTREME_OPS = (
    "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "ConvTranspose", "Div", "Gemm",
    "GlobalAveragePool", "MatMul", "MaxPool", "Mul", "Relu", "Reshape", "Resize", "Sigmoid", "Slice", "Softmax",
    "Split", "Sub", "Transpose",
)  # fmt: skip
"""Every operator that ModelOpt can put Q/DQ before and YOLO has."""


@dataclass(frozen=True)
class PtqSettings:
    """How an ONNX file is quantized.

    Attributes:
        mode: ``int8`` or ``fp8`` (E4M3, for Ada, Hopper and Blackwell).
        method: Calibration of the ranges: ``max`` or ``entropy``.
        preset: ``nohead`` leaves the head's output convolutions and DFL in float, as Ultralytics does; ``everything``
            excludes nothing, which is ModelOpt's own default; ``extreme`` quantizes every operator type, a stress test
            that costs most of the accuracy.
        nodes: Regular expressions of the only nodes to quantize; empty for all.
        exclude: Regular expressions of nodes to leave in float, beside the preset's.
        ops: The only operator types to quantize; empty for ModelOpt's choice.
        exclude_ops: Operator types to leave in float.
        per_node: Calibrate node by node, which needs less memory and more time.
        providers: ONNX Runtime execution providers for calibration, in ModelOpt's names; CUDA's can crash.
    """

    mode: Mode = "int8"
    method: PtqMethod = "max"
    preset: Preset = "nohead"
    nodes: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()
    exclude_ops: tuple[str, ...] = ()
    per_node: bool = False
    providers: tuple[str, ...] = ("cpu",)

    @property
    def tag(self) -> str:
        """The settings as part of a file name, such as ``int8-max-nohead``."""
        custom = ["custom"] if self.nodes or self.exclude or self.ops or self.exclude_ops else []
        return "-".join([self.mode, self.method, self.preset, *custom])


def ptq(fp32: Path, path: Path, pixels: np.ndarray, settings: PtqSettings, source: Path | None = None) -> Graph:
    """Quantize an FP32 ONNX file.

    Args:
        fp32: FP32 graph with Ultralytics metadata.
        path: Where to write; what is not quantized stays FP32, or becomes FP16 in an FP8 graph. A ``.json`` beside it
            holds the settings.
        pixels: Calibration images, float32 in [0, 1], shape (N, 3, H, W).
        settings: How to quantize.
        source: File that the graph is a copy of, for the record.

    Raises:
        ExportError: ModelOpt refused, quantized nothing, or wrote a graph that no runtime survives.
    """
    import onnx
    from modelopt.onnx.quantization import quantize

    original = load_graph(fp32)
    if any(node.op_type == "QuantizeLinear" for node in original.graph.node):
        raise ExportError(f"'{fp32}' is quantized already. Pass the FP32 graph it was made from.")
    for pattern in (*settings.nodes, *settings.exclude):
        if not any(re.match(pattern, node.name) for node in original.graph.node):
            raise ExportError(
                f"No node of '{fp32}' matches '{pattern}'. Its nodes are called like '/model.0/conv/Conv'."
            )
    exclude = [*(HEAD if settings.preset == "nohead" else ()), *settings.exclude]
    name = original.graph.input[0].name
    ops = list(settings.ops) or (_types_in(original, EXTREME_OPS) if settings.preset == "extreme" else None)
    with tempfile.TemporaryDirectory(prefix="ultra-mq-ptq-") as folder, quiet():
        output = Path(folder) / "quantized.onnx"
        try:
            quantize(
                str(fp32),
                quantize_mode=settings.mode,
                calibration_data={name: pixels},
                calibration_shapes=f"{name}:1x{'x'.join(map(str, pixels.shape[1:]))}"
                if 0 in input_shape(original)
                else None,
                calibration_method=settings.method,
                calibration_eps=list(settings.providers),
                op_types_to_quantize=ops,
                op_types_to_exclude=list(settings.exclude_ops) or None,
                nodes_to_quantize=list(settings.nodes) or None,
                nodes_to_exclude=exclude or None,
                calibrate_per_node=settings.per_node,
                # AutoCast cannot run an FP8 graph to find ranges, so ModelOpt itself puts FP16 around it.
                high_precision_dtype="fp16" if settings.mode == "fp8" else "fp32",
                output_path=str(output),
            )
            quantized = onnx.load(str(output))
        except Exception as error:
            raise ExportError(
                f"ModelOpt cannot quantize '{fp32}' with {settings.tag}: {type(error).__name__}: {error}. "
                f"Choose another preset, or exclude nodes with --exclude."
            ) from error
    if not any(node.op_type == "QuantizeLinear" for node in quantized.graph.node):
        raise ExportError(f"ModelOpt quantized nothing of '{fp32}'. Loosen --nodes, --exclude or --ops.")
    copy_metadata(original, quantized)
    # A stress test may quantize DFL: that is its purpose, and no reason to refuse the file.
    graph = save_graph(quantized, path, allow=("dfl-quantized",) if settings.preset != "nohead" else ())
    details = {**asdict(settings), "source": str(source or fp32), "calibration_images": len(pixels)}
    write_text(path.with_suffix(".json"), json.dumps(details, indent=1))
    return graph


def ptq_plan(fp32: Path, path: Path, pixels: np.ndarray, quantized: Mapping[str, str]) -> Graph:
    """Carry out a plan with ModelOpt's ONNX path: its placement, the plan's choice of layers.

    Args:
        fp32: FP32 graph of the plan's model, with Ultralytics metadata.
        path: Where to write.
        pixels: Calibration images, float32 in [0, 1], shape (N, 3, H, W).
        quantized: Layer name to format, one and the same; other layers are excluded by the names of their nodes.

    Raises:
        PlanError: The plan mixes formats, which ModelOpt's ONNX path cannot.
        ExportError: ModelOpt refused.
    """
    formats = set(quantized.values())
    if len(formats) != 1:
        raise PlanError(
            f"placement=onnx carries out one format beside float, and the plan has {', '.join(sorted(formats))}. "
            f"Use placement=runtime."
        )
    graph = load_graph(fp32).graph
    # Attention's products have no place in a plan, and TensorRT 8.6 loses accuracy with them in INT8.
    exclude = [
        f"{re.escape(node.name)}$"
        for node in graph.node
        if node.op_type in LAYER_OPS and layer_of(node.name) not in quantized
    ]
    return ptq(fp32, path, pixels, PtqSettings(mode=formats.pop(), preset="everything", exclude=tuple(exclude)))  # type: ignore[arg-type]


def load_pixels(batches: Batches) -> np.ndarray:
    """Calibration images as one tensor, float32 in [0, 1], shape (N, 3, H, W)."""
    return np.concatenate([batch["img"].cpu().numpy() for batch in batches])


def save_calibration(batches: Batches, path: Path) -> np.ndarray:
    """Write calibration images as one ``.npy`` tensor with the list of files beside it, and return them.

    Args:
        batches: Images to take.
        path: ``.npy`` file; float32 in [0, 1], shape (N, 3, H, W).
    """
    pixels = load_pixels(batches)
    with atomic_path(path) as temporary:
        np.save(temporary, pixels)
    files = [batches.split.images[index] for index in batches.indices]
    write_text(path.with_suffix(".txt"), "".join(f"{file}\n" for file in files))
    return pixels


def load_calibration(path: Path, imgsz: ImageSize, channels: int = 3) -> np.ndarray:
    """Read calibration images.

    Raises:
        DataError: The file cannot be read or has another shape or type.
    """
    size = height_width(imgsz)
    try:
        pixels: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"Calibration tensor '{path}' cannot be read: {error}. Make it with ultra-mq ptq.") from error
    if pixels.dtype != np.float32 or pixels.ndim != 4 or pixels.shape[1:] != (channels, *size):
        raise DataError(
            f"Calibration tensor '{path}' is {pixels.dtype} {pixels.shape}; needed is float32 "
            f"(N, {channels}, {size[0]}, {size[1]})."
        )
    return pixels


def hot_spots(graph: onnx.ModelProto) -> list[str]:
    """Nodes of a mixed graph that compute in FP32, box decode and type conversions included.

    Args:
        graph: Graph that AutoCast made.
    """
    import onnx

    inferred = onnx.shape_inference.infer_shapes(graph).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    skipped = ("Cast", "Constant", "QuantizeLinear", "DequantizeLinear", "Shape", "Identity")
    return [
        node.name
        for node in inferred.node
        if node.op_type not in skipped and any(types.get(name) == onnx.TensorProto.FLOAT for name in node.output)
    ]


def _types_in(graph: onnx.ModelProto, types: Sequence[str]) -> list[str]:
    present = {node.op_type for node in graph.graph.node}
    return [name for name in types if name in present]
