# SPDX-License-Identifier: AGPL-3.0-or-later
"""An artefact as a server or a program takes it: which file, what goes in, what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ultra_mq.core import PackageError
from ultra_mq.graph import load_graph, read_metadata, signed_activations
from ultra_mq.report import load_variants
from ultra_mq.runtimes import engine_target, load_engine, read_exported

Kind = Literal["onnx", "engine"]


@dataclass(frozen=True)
class Tensor:
    """An input or output.

    Attributes:
        name: Its name.
        dtype: numpy's name of its type.
        shape: Sizes, -1 for a free axis.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Deployable:
    """What is packaged.

    Attributes:
        path: ONNX file or TensorRT engine.
        kind: Which of the two.
        name: Name for servers: the file's, without what they would not take.
        task: Ultralytics task.
        labels: Class names by index.
        height: Of the input in pixels.
        width: Of the input in pixels.
        batch: Images in one pass.
        metadata: What Ultralytics wrote into the file.
        inputs: Inputs of the graph.
        outputs: Outputs of the graph, by name.
        decoded: Whether the output has a row an object already, so that nothing has to be suppressed.
        quantized: Whether the graph has Q/DQ.
        signed: Whether activations of it are signed INT8.
        offset: Bytes before the engine itself in its file; 0 for ONNX.
        runtime: What an engine needs, ``TensorRT 10.13.3`` say; empty for ONNX.
    """

    path: Path
    kind: Kind
    name: str
    task: str
    labels: tuple[str, ...]
    height: int
    width: int
    batch: int
    metadata: dict[str, Any]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    decoded: bool
    quantized: bool
    signed: bool
    offset: int
    runtime: str


def read_deployable(source: Path, variant: str | None = None) -> Deployable:
    """Read a run folder, an ONNX file or an engine.

    Args:
        source: Run folder, of which the engine is taken where there is one; or a file.
        variant: Variant of a run folder; the last one by default.

    Raises:
        PackageError: It is none of these, or does not say enough of itself.
    """
    path = _file_of(source, variant) if source.is_dir() else source
    exported = read_exported(path)
    kind: Kind = "onnx" if path.suffix == ".onnx" else "engine"
    graph_path, offset, runtime = path, 0, ""
    if kind == "engine":
        graph_path, offset, runtime = _describe_engine(path)
    graph = load_graph(graph_path)
    metadata = read_metadata(graph)
    if exported.task is None or not exported.names or exported.imgsz is None:
        raise PackageError(
            f"'{path}' does not say its task, class names or image size, which a package needs. Export it with "
            f"Ultralytics or ultra-mq, which write them into the file."
        )
    size = exported.imgsz
    height, width = size if isinstance(size, tuple) else (size, size)
    return Deployable(
        path=path,
        kind=kind,
        name="".join(letter if letter.isalnum() or letter in "_-" else "_" for letter in path.stem),
        task=exported.task,
        labels=tuple(exported.names[index] for index in sorted(exported.names)),
        height=height,
        width=width,
        batch=exported.batch,
        metadata=metadata,
        inputs=tuple(_tensor(value) for value in graph.graph.input),
        outputs=tuple(sorted((_tensor(value) for value in graph.graph.output), key=lambda one: one.name)),
        decoded=exported.settled,
        quantized=any(node.op_type == "QuantizeLinear" for node in graph.graph.node),
        signed=bool(signed_activations(graph)),
        offset=offset,
        runtime=runtime,
    )


def _file_of(run: Path, variant: str | None) -> Path:
    try:
        variants = load_variants(run / "results.json")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PackageError(
            f"'{run}' is not a run folder of this version: {error}. Pass one that has a results.json, an .onnx or an "
            f".engine."
        ) from error
    name = variant or list(variants)[-1]
    if name not in variants:
        raise PackageError(f"'{run}' has no variant '{name}'. It has {', '.join(variants)}.")
    found = variants[name]
    onnx = run / str(found["onnx"])
    engine = found.get("engine")
    # A TensorRT-RTX engine belongs to TensorRT-RTX alone, which none of the targets has.
    if engine and engine["target"] == "tensorrt":
        return onnx.parent / str(engine["path"])
    return onnx


def _describe_engine(path: Path) -> tuple[Path, int, str]:
    """The graph an engine was built from, the bytes before the engine in its file, and what it needs."""
    from ultralytics.nn.backends.base import BaseBackend

    if engine_target(path) is None:
        raise PackageError(
            f"Nothing beside '{path}' says which graph it was built from, so its inputs and outputs are not known. "
            f"Build it with ultra-mq build, or package the ONNX file."
        )
    engine = load_engine(path)
    if engine.target == "rtx":
        raise PackageError(
            f"'{path}' is an engine of TensorRT-RTX, which none of the targets runs. Package the ONNX file, or build "
            f"with --target tensorrt."
        )
    graph = path.with_name(engine.onnx)
    if not graph.is_file():
        raise PackageError(f"'{graph}', from which '{path.name}' was built, is gone. Put it back beside the engine.")
    offset, _ = BaseBackend.engine_header(path)
    return graph, int(offset), engine.runtime_name


def _tensor(value: Any) -> Tensor:
    import onnx

    kind = value.type.tensor_type
    sizes = tuple(size.dim_value if size.HasField("dim_value") else -1 for size in kind.shape.dim)
    return Tensor(value.name, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name, sizes)
