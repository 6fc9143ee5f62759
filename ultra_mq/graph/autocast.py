# SPDX-License-Identifier: AGPL-3.0-or-later
"""FP16 around the Q/DQ pairs of a graph, by ModelOpt AutoCast: what strongly typed runtimes are built from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ultra_mq.core import ExportError, quiet
from ultra_mq.graph.lint import lint_graph
from ultra_mq.graph.onnx_file import Graph, copy_metadata, save_graph

if TYPE_CHECKING:
    import onnx


DECODE_OPS = "Sub|Add|Div|Mul|Concat|Split|Slice|Reshape|Transpose|Softmax"


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
    # A fault that the source has is its maker's choice; here only new ones are fatal.
    return save_graph(converted, path, allow=[fault.rule for fault in lint_graph(original)])


def decode_patterns(graph: onnx.ModelProto) -> list[str]:
    """Regular expressions for the nodes of box decode: the head's own arithmetic and DFL.

    The head is the module with the highest index, ``/model.23/...`` in YOLO11.
    """
    indices = [int(match[1]) for node in graph.graph.node if (match := re.match(r"/model\.(\d+)/", node.name))]
    if not indices:
        return []
    head = rf"/model\.{max(indices)}"
    return [rf"^{head}/({DECODE_OPS})(_\d+)?$", rf"^{head}/dfl/.*"]
