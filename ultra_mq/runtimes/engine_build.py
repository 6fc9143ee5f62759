# SPDX-License-Identifier: AGPL-3.0-or-later
"""A graph to an engine that works: converted for the runtime, built, and repaired where the builder fails."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ultra_mq.core import BackendError, atomic_path, building, warn
from ultra_mq.graph import (
    convert_to_fp16,
    find_failed_nodes,
    input_shape,
    keep_in_float,
    layers_of,
    load_graph,
    read_metadata,
)
from ultra_mq.runtimes.engine import BuildSettings, Engine, Runtime, find_runtime, save_engine
from ultra_mq.runtimes.tensorrt_builder import build_engine
from ultra_mq.runtimes.worker import WorkerError

MAX_REPAIRS = 4


@dataclass(frozen=True)
class Built:
    """An engine and the graph that it was really built from.

    Attributes:
        engine: The engine.
        onnx: FP32 or Q/DQ graph with the engine's precisions, for ONNX Runtime: what its accuracy is held against. The
            repaired graph where there was a repair.
    """

    engine: Engine
    onnx: Path


def build(
    onnx_file: Path,
    path: Path,
    settings: BuildSettings,
    *,
    runtime: Runtime | None = None,
    image: np.ndarray | None = None,
    typed: Path | None = None,
    max_repairs: int = MAX_REPAIRS,
    timing_caches: Path | None = None,
) -> Built:
    """Build an engine from an FP32 or Q/DQ graph, and repair what the builder cannot do.

    When the builder fails on quantized layers, those stay in float, without their Q/DQ, and it builds again. The
    repaired graph is written beside the engine.

    Args:
        onnx_file: FP32 graph, with Q/DQ or without. A graph that has FP16 in it already is built as it is.
        path: Engine file to write.
        settings: How to build.
        runtime: From ``find_runtime``; asked here where it is None.
        image: One real image for the FP16 conversion, float32 in [0, 1], shape (B, 3, H, W).
        typed: The same graph with FP16 around it, where it was made already; a strongly typed runtime starts from it.
        max_repairs: How often to repair.
        timing_caches: Folder of timing caches; None keeps none.

    Raises:
        BackendError: TensorRT is missing, or cannot build the graph even after repairs.
    """
    import onnx

    runtime = runtime or find_runtime(settings)
    source = onnx_file
    repaired: list[list[str]] = []
    graph = load_graph(source)
    if 0 in input_shape(graph) and settings.profile is None:
        raise BackendError(
            f"'{source}' has dynamic axes, so TensorRT needs to know the sizes to expect. Pass --min, --opt and --max, "
            f"such as 1x3x320x320, 1x3x640x640 and 4x3x1280x1280."
        )
    if image is None and settings.profile is not None:
        # AutoCast makes up its own noise, but for static graphs alone.
        image = np.random.default_rng(0).random(settings.profile[1], dtype=np.float32)
    with tempfile.TemporaryDirectory(prefix="ultra-mq-typed-") as folder:
        while True:
            if typed is None or repaired or not runtime.strongly_typed:
                typed = _typed(source, runtime, image, Path(folder))
            try:
                with building(path.name) as on_progress:
                    engine = build_engine(
                        typed, path, read_metadata(graph), settings, runtime,
                        timing_caches=timing_caches, on_progress=on_progress,
                    )  # fmt: skip
                break
            except WorkerError as error:
                if error.died:
                    raise
                failed = find_failed_nodes(graph, str(error), error.log)
                if not failed or len(repaired) >= max_repairs:
                    raise _give_up(source, repaired, error) from error
                warn(f"{path.name}: TensorRT cannot build {', '.join(failed[:4])} in INT8; building with it in float.")
                repaired.append(failed)
                graph = keep_in_float(graph, failed)
                source = path.with_name(f"{path.stem}-repaired.onnx")
                with atomic_path(source) as temporary:
                    onnx.save(graph, str(temporary))
    if repaired:
        nodes = [name for names in repaired for name in names]
        engine = replace(engine, onnx=source.name, repaired=tuple(layers_of(nodes) or nodes))
        save_engine(engine)
    return Built(engine, source)


def _typed(source: Path, runtime: Runtime, image: np.ndarray | None, folder: Path) -> Path:
    """The graph as the runtime wants it: a strongly typed one reads precisions from the graph."""
    import onnx

    graph = onnx.load(str(source)).graph
    if not runtime.strongly_typed or any(t.data_type == onnx.TensorProto.FLOAT16 for t in graph.initializer):
        return source
    return convert_to_fp16(source, folder / source.name, image).path


def _give_up(source: Path, repaired: list[list[str]], error: WorkerError) -> BackendError:
    tried = f" after {len(repaired)} repairs" if repaired else ""
    return BackendError(
        f"No engine can be built from '{source}'{tried}: {error} Leave the layers it names in float "
        f"(--exclude of ultra-mq ptq, or format fp16 in plan.yaml), or use another version of TensorRT."
    )
