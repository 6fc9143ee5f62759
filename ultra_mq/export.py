# SPDX-License-Identifier: AGPL-3.0-or-later
"""A float or quantized model to ONNX: Q/DQ from the quantizers, FP16 around them, metadata, lint."""

from __future__ import annotations

import ast
import contextlib
import copy
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ultra_mq.console import quiet
from ultra_mq.errors import ExportError
from ultra_mq.files import atomic_path
from ultra_mq.formats import E4M3
from ultra_mq.lint import Fault, lint_graph
from ultra_mq.qdq import tidy_qdq

if TYPE_CHECKING:
    import onnx
    from torch import nn

OPSET = 17
"""Newest opset that TensorRT 8.6 documents; later versions and the other runtimes read it too."""

FP8_OPSET = 19
"""First opset with FP8."""

DECODE_OPS = "Sub|Add|Div|Mul|Concat|Split|Slice|Reshape|Transpose|Softmax"


@dataclass(frozen=True)
class Graph:
    """An ONNX file that passed the lint.

    Attributes:
        path: The file.
        size_bytes: Its size.
        faults: What the lint found, none of it fatal.
    """

    path: Path
    size_bytes: int
    faults: tuple[Fault, ...]


def export_onnx(module: nn.Module, path: Path, imgsz: int, batch: int = 1) -> Graph:
    """Export a float or fake-quantized module with Ultralytics' own exporter.

    Quantizers become QuantizeLinear/DequantizeLinear pairs; everything else stays FP32. Ultralytics adds the
    metadata that lets ``YOLO("model.onnx")`` run the file.

    Args:
        module: Fused Ultralytics module, with ModelOpt quantizers or without.
        path: Where to write.
        imgsz: Image size in pixels; the graph is static.
        batch: Images a forward pass.

    Raises:
        ExportError: The exporter failed, or the lint found a fault that no runtime survives.
    """
    import onnx
    from ultralytics.engine.exporter import Exporter

    with tempfile.TemporaryDirectory(prefix="ultra-mq-export-") as folder, quiet() as messages:
        module = copy.deepcopy(module).cpu()
        # The exporter names its output after the checkpoint.
        module.pt_path = str(Path(folder) / "model.pt")  # type: ignore[assignment]
        opset = FP8_OPSET if _has_fp8(module) else OPSET
        overrides = {"format": "onnx", "imgsz": imgsz, "batch": batch, "opset": opset, "simplify": False}
        overrides["device"] = "cpu"
        try:
            written = Exporter(overrides=overrides)(model=module)
        except Exception as error:
            raise ExportError(
                f"ONNX export failed: {error}. {' '.join(messages[-2:])} "
                f"Run with --debug for the traceback, and check that torch and onnx are the documented versions."
            ) from error
        graph = load_graph(Path(written))
        tidy_qdq(graph)
        with atomic_path(path) as temporary:
            onnx.save(graph, str(temporary))
    return check_graph(path)


def _has_fp8(module: nn.Module) -> bool:
    return any(
        getattr(child, "num_bits", None) == E4M3 for child in module.modules() if getattr(child, "is_enabled", 0)
    )


def convert_to_fp16(
    source: Path,
    path: Path,
    image: np.ndarray | None,
    *,
    precision: Literal["fp16", "bf16"] = "fp16",
    exclude: Sequence[str] = (),
) -> Graph:
    """Put FP16 around the Q/DQ pairs of an FP32 graph with ModelOpt AutoCast; box decode stays FP32.

    TensorRT 10 and later are strongly typed: precision stands in the graph. AutoCast leaves a node in FP32
    when its values on a real image exceed the FP16 range. Box decode holds pixel coordinates up to ``imgsz``,
    where FP16 resolves half a pixel at best; keeping it in FP32 takes the box error from 0.28 px to 0.019 px.

    Args:
        source: FP32 ONNX file, with Q/DQ or without.
        path: Where to write.
        image: One real image, float32 in [0, 1], shape (B, 3, imgsz, imgsz); None lets AutoCast make up noise, whose
            larger activations leave more nodes in FP32.
        precision: Low precision.
        exclude: Regular expressions of further nodes to leave in FP32.

    Raises:
        ExportError: AutoCast failed, or the lint found a fatal fault that the source does not have.
    """
    import onnx
    from modelopt.onnx import autocast

    original = onnx.load(str(source))
    with quiet():
        try:
            converted = autocast.convert_to_mixed_precision(
                str(source),
                low_precision_type=precision,
                keep_io_types=True,
                calibration_data=None if image is None else {original.graph.input[0].name: image.astype(np.float32)},
                nodes_to_exclude=[*decode_patterns(original), *exclude],
            )
        except Exception as error:
            raise ExportError(
                f"{precision.upper()} conversion of '{source}' failed: {error}. Run with --debug for the traceback."
            ) from error
    copy_metadata(original, converted)
    with atomic_path(path) as temporary:
        onnx.save(converted, str(temporary))
    # A fault that the source has is its maker's choice; here only new ones are fatal.
    return check_graph(path, allow=[fault.rule for fault in lint_graph(original)])


def load_graph(path: Path) -> onnx.ModelProto:
    """Load an ONNX file.

    Raises:
        ExportError: It cannot be read.
    """
    import onnx

    try:
        return onnx.load(str(path))
    except Exception as error:
        raise ExportError(f"'{path}' cannot be read as ONNX: {error}. Pass an exported .onnx file.") from error


def input_shape(graph: onnx.ModelProto) -> tuple[int, ...]:
    """Shape of a graph's input; 0 stands for a dynamic axis."""
    return tuple(dimension.dim_value for dimension in graph.graph.input[0].type.tensor_type.shape.dim)


def copy_metadata(source: onnx.ModelProto, target: onnx.ModelProto) -> None:
    """Give a graph the metadata that Ultralytics needs to run it; ModelOpt's conversions drop it."""
    del target.metadata_props[:]
    target.metadata_props.extend(source.metadata_props)


def read_metadata(graph: onnx.ModelProto) -> dict[str, Any]:
    """Ultralytics metadata of a graph with its values parsed, as an engine's header holds them."""
    found: dict[str, Any] = {}
    for entry in graph.metadata_props:
        found[entry.key] = entry.value
        with contextlib.suppress(ValueError, SyntaxError):  # plain text, such as the description
            found[entry.key] = ast.literal_eval(entry.value)
    return found


def check_graph(path: Path, allow: Sequence[str] = ()) -> Graph:
    """Lint an ONNX file.

    Args:
        path: The file; it is removed where a fault is fatal.
        allow: Rules whose faults are not fatal this time.

    Raises:
        ExportError: A fault that no runtime survives.
    """
    import onnx

    faults = lint_graph(onnx.load(str(path)))
    if fatal := [fault for fault in faults if fault.fatal and fault.rule not in allow]:
        path.unlink(missing_ok=True)
        raise ExportError(
            f"The exported graph is not usable: {'; '.join(fault.message for fault in fatal[:5])}. "
            f"Please report it with your model's YAML; nothing was kept."
        )
    return Graph(path, path.stat().st_size, tuple(faults))


def decode_patterns(graph: onnx.ModelProto) -> list[str]:
    """Regular expressions for the nodes of box decode: the head's own arithmetic and DFL.

    The head is the module with the highest index, ``/model.23/...`` in YOLO11.
    """
    indices = [int(match[1]) for node in graph.graph.node if (match := re.match(r"/model\.(\d+)/", node.name))]
    if not indices:
        return []
    head = rf"/model\.{max(indices)}"
    return [rf"^{head}/({DECODE_OPS})(_\d+)?$", rf"^{head}/dfl/.*"]
