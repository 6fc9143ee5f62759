# SPDX-License-Identifier: AGPL-3.0-or-later
"""A folder that runs an artefact in the thing that people deploy with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import jinja2

from ultra_mq.core import PackageError, atomic_folder, warn
from ultra_mq.deploy.deployable import Deployable, Tensor

TEMPLATES = Path(__file__).parent / "templates"

PackageTarget = Literal["triton", "deepstream", "cpp", "python"]

TRITON_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "int64": "TYPE_INT64", "int32": "TYPE_INT32"}
"""https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html"""

CONFIDENCE, IOU = 0.25, 0.7
"""Ultralytics' own thresholds of predict."""


def package(made: Deployable, target: PackageTarget, folder: Path) -> Path:
    """Write a folder that runs an artefact, with a README of two commands.

    Args:
        made: What to package.
        target: ``triton``: a model repository. ``deepstream``: nvinfer's configuration, labels and a parser of the
            output. ``cpp``: a loader with CMake, for engines on TensorRT and ONNX files on OpenVINO. ``python``: the
            same in numpy and OpenCV, on TensorRT or ONNX Runtime.
        folder: Folder to write; it must not exist.

    Returns:
        The folder.

    Raises:
        PackageError: The target cannot run the artefact, or the folder exists.
    """
    if folder.exists():
        raise PackageError(f"'{folder}' exists already. Remove it, or choose another folder with --output.")
    WRITERS[target](made, folder)
    return folder


def _write_triton(made: Deployable, folder: Path) -> None:
    batched = all(tensor.shape and tensor.shape[0] < 0 for tensor in (*made.inputs, *made.outputs))
    values = {
        "platform": "tensorrt_plan" if made.kind == "engine" else "onnxruntime_onnx",
        "max_batch": made.batch if batched else 0,
        "tensors": {
            "input": [_triton_tensor(tensor, batched) for tensor in made.inputs],
            "output": [_triton_tensor(tensor, batched) for tensor in made.outputs],
        },
        # Ultralytics' own client reads this, so that YOLO("http://host:8000/name") knows task and classes.
        "metadata": json.dumps(str({key: value for key, value in made.metadata.items() if key != "description"})),
    }
    name = "model.plan" if made.kind == "engine" else "model.onnx"
    with atomic_folder(folder) as temporary:
        model = temporary / "models" / made.name
        _render("triton", made, temporary, **values)
        (model / "1").mkdir(parents=True)
        (temporary / "config.pbtxt").rename(model / "config.pbtxt")
        _copy_model(made, model / "1" / name)


def _write_deepstream(made: Deployable, folder: Path) -> None:
    _require_boxes(made, "deepstream")
    if made.kind == "onnx" and any(size < 0 for size in made.inputs[0].shape):
        raise PackageError(
            f"'{made.path}' has free axes, and nobody says which engine to build of it. Build one, ultra-mq build "
            f"{made.path}, and package that."
        )
    with atomic_folder(folder) as temporary:
        _render("deepstream", made, temporary)
        _copy_header(temporary)
        _copy_model(made, temporary / f"{made.name}.{'plan' if made.kind == 'engine' else 'onnx'}")


def _write_cpp(made: Deployable, folder: Path) -> None:
    if made.kind == "onnx" and made.signed:
        warn(
            f"'{made.path}' has signed 8-bit activations, from which OpenVINO gets other values on CPUs without AMX. "
            f"Quantize it for OpenVINO with --runtime openvino, unless it will run with AMX alone."
        )
    _write_loader("cpp", made, folder)


def _write_python(made: Deployable, folder: Path) -> None:
    _write_loader("python", made, folder)


def _write_loader(target: PackageTarget, made: Deployable, folder: Path) -> None:
    _require_boxes(made, target)
    _require_one_image(made, target)
    with atomic_folder(folder) as temporary:
        _render(target, made, temporary)
        if target == "cpp":
            _copy_header(temporary)
        # What is before the engine stays: loaders take files as ultra-mq and Ultralytics write them.
        shutil.copyfile(made.path, temporary / made.path.name)


WRITERS: dict[PackageTarget, Callable[[Deployable, Path], None]] = {
    "triton": _write_triton,
    "deepstream": _write_deepstream,
    "cpp": _write_cpp,
    "python": _write_python,
}


def _require_boxes(made: Deployable, target: str) -> None:
    if made.task != "detect":
        raise PackageError(
            f"'{made.path}' is a {made.task} model, and the {target} package decodes boxes alone. Use --for triton, "
            f"whose client is Ultralytics itself, or ultra-mq predict."
        )


def _require_one_image(made: Deployable, target: str) -> None:
    if made.batch != 1 or any(size < 0 for size in made.inputs[0].shape):
        raise PackageError(
            f"'{made.path}' takes several images or any size, and the {target} package runs one image of one size. "
            f"Export with export.batch=1 export.dynamic=false, or use --for triton."
        )


def _copy_header(folder: Path) -> None:
    """What the C++ of several targets includes."""
    shutil.copyfile(TEMPLATES / "shared" / "yolo.hpp", folder / "yolo.hpp")


def _copy_model(made: Deployable, path: Path) -> None:
    """The file without Ultralytics' header, which only Ultralytics and ultra-mq know."""
    with made.path.open("rb") as source, path.open("wb") as target:
        source.seek(made.offset)
        shutil.copyfileobj(source, target)


def _triton_tensor(tensor: Tensor, batched: bool) -> dict[str, Any]:
    if tensor.dtype not in TRITON_TYPES:
        raise PackageError(f"Triton has no name for the type {tensor.dtype} of '{tensor.name}'. Use --for python.")
    sizes = tensor.shape[1:] if batched else tensor.shape
    return {"name": tensor.name, "type": TRITON_TYPES[tensor.dtype], "dims": list(sizes)}


def _render(target: PackageTarget, made: Deployable, folder: Path, **values: Any) -> None:
    """Write the templates of a target into a folder; those that end in ``.j2`` are filled in."""
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["json"] = json.dumps
    known = {**asdict(made), **values, "file_name": made.path.name, "confidence": CONFIDENCE, "iou": IOU}
    for entry in sorted((TEMPLATES / target).iterdir()):
        text = entry.read_text(encoding="utf-8")
        filled = environment.from_string(text).render(known) if entry.suffix == ".j2" else text
        (folder / entry.name.removesuffix(".j2")).write_text(filled, encoding="utf-8")
