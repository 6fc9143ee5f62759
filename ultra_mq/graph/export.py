# SPDX-License-Identifier: AGPL-3.0-or-later
"""A float or quantized model to ONNX: Q/DQ from the quantizers, FP16 around them, metadata, lint."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ultra_mq.core import E4M3, ExportError, quiet
from ultra_mq.graph.onnx_file import Graph, load_graph, save_graph
from ultra_mq.graph.tidy import tidy_qdq
from ultra_mq.prepare import ImageSize, height_width

if TYPE_CHECKING:
    from torch import nn

OPSET = 17
"""Newest opset that TensorRT 8.6 documents; later versions and the other runtimes read it too."""

FP8_OPSET = 19
"""First opset with FP8."""


def export_onnx(module: nn.Module, path: Path, imgsz: ImageSize, batch: int = 1, *, dynamic: bool = False) -> Graph:
    """Export a float or fake-quantized module with Ultralytics' own exporter.

    Quantizers become QuantizeLinear/DequantizeLinear pairs; everything else stays FP32. Ultralytics adds the
    metadata that lets ``YOLO("model.onnx")`` run the file.

    Args:
        module: Fused Ultralytics module, with ModelOpt quantizers or without.
        path: Where to write.
        imgsz: Image size in pixels, a number or height and width.
        batch: Images a forward pass.
        dynamic: Let batch, height and width vary.

    Raises:
        ExportError: The exporter failed, or the lint found a fault that no runtime survives.
    """
    from ultralytics.engine.exporter import Exporter

    with tempfile.TemporaryDirectory(prefix="ultra-mq-export-") as folder, quiet() as messages:
        module = copy.deepcopy(module).cpu()
        # The exporter names its output after the checkpoint.
        module.pt_path = str(Path(folder) / "model.pt")  # type: ignore[assignment]
        opset = FP8_OPSET if has_fp8(module) else OPSET
        overrides = {"format": "onnx", "batch": batch, "opset": opset, "simplify": False}
        overrides |= {"imgsz": list(height_width(imgsz)), "dynamic": dynamic, "device": "cpu"}
        try:
            written = Exporter(overrides=overrides)(model=module)
        except Exception as error:
            raise ExportError(
                f"ONNX export failed: {error}. {' '.join(messages[-2:])} "
                f"Run with --debug for the traceback, and check that torch and onnx are the documented versions."
            ) from error
        graph = tidy_qdq(load_graph(Path(written)))
    return save_graph(graph, path)


def has_fp8(module: nn.Module) -> bool:
    """Whether a quantizer of a module is one of FP8."""
    return any(
        getattr(child, "num_bits", None) == E4M3 for child in module.modules() if getattr(child, "is_enabled", 0)
    )
