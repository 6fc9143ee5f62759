# SPDX-License-Identifier: AGPL-3.0-or-later
"""An ONNX file to an engine of TensorRT 8.6, 10, 11 or TensorRT-RTX, in the worker.

TensorRT builds on the GPU that the engine is for. TensorRT-RTX builds ahead of time, without a GPU, for GeForce RTX and
RTX PRO cards; its engines are not TensorRT plans, and a build proves that the graph parses and keeps its precisions,
not how fast TensorRT runs it.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ultra_mq.core import atomic_path, sha256_of
from ultra_mq.graph import decode_patterns, load_graph
from ultra_mq.prepare import LAYER_OPS
from ultra_mq.runtimes.builders import open_builder
from ultra_mq.runtimes.engine import BuildSettings, Engine, Runtime, save_engine
from ultra_mq.runtimes.inspection import read_rtx_table
from ultra_mq.runtimes.tensorrt import read_layers
from ultra_mq.runtimes.worker import Progress

if TYPE_CHECKING:
    import onnx


def build_engine(
    onnx_file: Path,
    path: Path,
    metadata: Mapping[str, Any],
    settings: BuildSettings,
    runtime: Runtime,
    *,
    timing_caches: Path | None = None,
    on_progress: Progress | None = None,
) -> Engine:
    """Build an engine.

    Args:
        onnx_file: FP32 or Q/DQ graph for a weakly typed runtime, a graph with FP16 in it for a strongly typed one.
        path: Engine file to write; the file appears when it is whole, and a ``.json`` beside it.
        metadata: Ultralytics metadata for the header.
        settings: How to build.
        runtime: From ``find_runtime``.
        timing_caches: Folder of timing caches, one for each GPU and version; None keeps none.
        on_progress: Receives the builder's progress where it reports any.

    Raises:
        WorkerError: TensorRT refused the graph, or its process died; its own words are in the message.
    """
    graph = None if runtime.strongly_typed else load_graph(onnx_file)
    flags = _choose_flags(graph, settings)
    device = runtime.device if settings.target == "tensorrt" else settings.compute_capability
    request: dict[str, Any] = {**settings.model_dump(mode="json"), "flags": flags}
    if graph is not None:
        request["precisions"] = _choose_precisions(graph)
    request["profile"] = {"images": settings.profile} if settings.profile else None
    if settings.target == "tensorrt":
        request["compute_capability"] = None
    cache = None
    if timing_caches is not None and settings.target == "tensorrt":
        timing_caches.mkdir(parents=True, exist_ok=True)
        # One for all precisions: with INT8's, TensorRT 8.6 builds YOLO11n in FP16 in 85 s in place of 111.
        compatible = ["VERSION_COMPATIBLE"] if settings.version_compatible else []
        name = "-".join([device, runtime.version, *compatible]).replace(" ", "_")
        cache = str(timing_caches / f"{name}.timing")
    header = json.dumps(dict(metadata)).encode()
    with open_builder(settings.interpreter) as worker, tempfile.TemporaryDirectory(prefix="ultra-mq-build-") as folder:
        plan = Path(folder) / "plan"
        answer = worker.call(
            "build",
            settings.timeout_s,
            on_progress,
            onnx=str(onnx_file.resolve()),
            plan=str(plan),
            settings=request,
            timing_cache=cache,
        )
        with atomic_path(path) as temporary:
            # Ultralytics' own layout: length, JSON, engine (BaseBackend.engine_header).
            temporary.write_bytes(len(header).to_bytes(4, "little") + header + plan.read_bytes())
    layers = read_rtx_table(answer["layer_table"])
    if settings.target == "tensorrt":
        layers = read_layers(path, settings.trt_python, settings.device)
    built = Engine(
        path=path,
        target=settings.target,
        version=runtime.version,
        device=device,
        size_bytes=path.stat().st_size,
        build_seconds=float(answer["seconds"]),
        flags=flags,
        onnx=onnx_file.name,
        onnx_sha256=sha256_of(onnx_file),
        settings=settings.model_dump(mode="json"),
        layers=layers,
    )
    save_engine(built)
    return built


def _choose_precisions(graph: onnx.ModelProto) -> list[tuple[str, str]]:
    """Types for a weakly typed builder: box decode in FP32, every other layer that is not quantized in FP16.

    What TensorRT adds of its own is told nothing: with the shuffles of decode's constants in FP16, TensorRT 8.6 put
    reformats around box decode that made YOLO11n 7 % slower on an H100 (docs/results/latency.md).

    In a Q/DQ graph only convolutions and matrix products are told: what stands between them must stay free to be fused
    into INT8 kernels.
    """
    rules = [(pattern, "FLOAT") for pattern in decode_patterns(graph)]
    if not _is_quantized(graph):
        return [*rules, (r"^(?!\(Unnamed )", "HALF")]
    dequantized = {out for node in graph.graph.node if node.op_type == "DequantizeLinear" for out in node.output}
    floats = [node.name for node in graph.graph.node if node.op_type in LAYER_OPS and node.input[0] not in dequantized]
    return rules + [(f"^{re.escape(name)}$", "HALF") for name in floats]


def _choose_flags(graph: onnx.ModelProto | None, settings: BuildSettings) -> tuple[str, ...]:
    """Builder flags; a weakly typed builder is told its precisions by them, and passes its graph."""
    precisions = [] if graph is None else ["FP16", *(["INT8"] if _is_quantized(graph) else [])]
    return (*precisions, *(["VERSION_COMPATIBLE"] if settings.version_compatible else []))


def _is_quantized(graph: onnx.ModelProto) -> bool:
    return any(node.op_type == "QuantizeLinear" for node in graph.graph.node)
