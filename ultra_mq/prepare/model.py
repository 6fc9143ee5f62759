# SPDX-License-Identifier: AGPL-3.0-or-later
"""Weights to a ``PreparedModel``: fused, differentiable, with its quantizable and kept layers listed."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ultra_mq.core import FORMATS, ModelError
from ultra_mq.prepare.flow import Op, channels_of, find_dead, trace_flow

if TYPE_CHECKING:
    import torch
    from torch import nn
    from ultralytics import YOLO

TASKS = ("detect", "segment", "pose", "obb", "classify")


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer of the model.

    Attributes:
        name: Module path, for example ``model.2.cv1.conv``.
        kind: Class name of the module, ``Conv2d`` or ``Linear``.
        numel: Number of weight elements, biases left out.
        channels: Input channels of a group or output channels, whichever is less.
    """

    name: str
    kind: str
    numel: int
    channels: int


@dataclass(frozen=True)
class PreparedModel:
    """A trained model made ready for scoring and quantization.

    Attributes:
        module: Ultralytics module in FP32 and eval mode, Conv+BN fused, no in-place activations.
        source: Checkpoint the weights came from, or a short description for a model held in memory.
        fingerprint: SHA-256 over names, shapes and values of all weights.
        task: Ultralytics task.
        names: Class index to class name.
        stride: Largest stride in pixels; image sizes must be multiples of it.
        quantizable: Layers that a plan may quantize, in the order of the forward pass.
        kept: Layers that stay in float: the head's output convolutions and DFL, and dead layers.
        dead: Names of layers whose input is zero whatever the image, as behind a pruned branch; they have no range.
        flow: How tensors flow through it, traced once.
        channels: Channels of an input image.
        kpt_shape: Number of keypoints and of values for each, of a pose model.
        train_args: What the checkpoint was trained with, by Ultralytics' keys.
    """

    module: nn.Module
    source: str
    fingerprint: str
    task: str
    names: dict[int, str]
    stride: int
    quantizable: tuple[Layer, ...]
    kept: tuple[Layer, ...]
    flow: tuple[Op, ...] = field(repr=False)
    channels: int = 3
    kpt_shape: tuple[int, int] | None = None
    train_args: dict[str, Any] = field(default_factory=dict, repr=False)
    dead: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        """Name of the model without folder and suffix, as used in file names."""
        return Path(self.source).stem or "model"


def load_model(weights: str | Path, device: str | torch.device = "cpu") -> PreparedModel:
    """Load a checkpoint and prepare it.

    Args:
        weights: Path of a ``.pt`` checkpoint, or the name of an Ultralytics asset such as ``yolo11n.pt``.
        device: Torch device of the prepared module.

    Raises:
        ModelError: The file is missing, is not a YOLO checkpoint, or holds a quantized model.
    """
    from ultralytics import YOLO
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

    path = Path(weights)
    if path.suffix == ".onnx":
        raise ModelError(
            f"'{path}' is an ONNX file; the precision search needs the PyTorch checkpoint. "
            f"Pass the .pt file it was exported from."
        )
    if path.suffix != ".pt":
        raise ModelError(f"'{path}' is not a .pt checkpoint. Pass trained YOLO weights, for example yolo11n.pt.")
    if not path.is_file() and path.name not in GITHUB_ASSETS_NAMES:
        raise ModelError(
            f"Weights '{path}' not found (looked in '{path.resolve().parent}'). "
            f"Check the path, or use the name of an Ultralytics model such as yolo11n.pt."
        )
    try:
        yolo = YOLO(str(weights))
        module = yolo.model
        if not isinstance(module, _module_class()):
            raise TypeError(f"it holds a {type(module).__name__}")
    except Exception as error:
        if not path.is_file():
            raise ModelError(
                f"'{path.name}' is not on this machine and could not be downloaded ({_first_line(error)}). "
                f"Download it elsewhere and pass its path."
            ) from error
        raise ModelError(
            f"'{path}' could not be read as a YOLO checkpoint ({_first_line(error)}). "
            f"Pass weights that were saved by Ultralytics."
        ) from error
    return prepare_model(yolo, device=device, source=str(weights))


def prepare_model(
    model: YOLO | nn.Module, device: str | torch.device = "cpu", source: str = "model in memory"
) -> PreparedModel:
    """Prepare a model that is already in memory; the model itself is left untouched.

    Conv and BN are fused first, because fusing a partly quantized model fails and because the deployed graph
    has the fused weights. In-place activations are switched off: they overwrite the tensors that gradient
    scoring needs.

    Args:
        model: An Ultralytics ``YOLO`` or its ``nn.Module``.
        device: Torch device of the prepared module.
        source: Where the weights came from, for messages and file names.

    Raises:
        ModelError: The model is quantized already, or its task is not supported.
    """
    import torch
    from ultralytics.utils.torch_utils import is_qat

    # Ultralytics' YOLO is an nn.Module too; only its inner model is the network.
    module: Any = model if isinstance(model, _module_class()) else getattr(model, "model", None)
    if hasattr(model, "ckpt_path") and model.ckpt_path and source == "model in memory":
        source = str(model.ckpt_path)
    if not isinstance(module, _module_class()):
        raise ModelError(f"Expected an Ultralytics YOLO model, got {type(model).__name__}. Pass YOLO('yolo11n.pt').")
    task = getattr(module, "task", None) or getattr(model, "task", "detect")
    if is_qat(module):
        raise ModelError(
            f"'{source}' is quantized already; quantizing it again would measure the wrong model. "
            f"Start from the float checkpoint."
        )
    if task not in TASKS:
        raise ModelError(f"'{source}' is a {task} model; supported: {', '.join(TASKS)}. Pass one of those.")
    _check_head(module.model[-1], source)
    with torch.inference_mode(False):
        module = copy.deepcopy(module).float().eval()
        module = module.fuse(verbose=False).to(device)
        for child in module.modules():
            if hasattr(child, "inplace"):
                child.inplace = False
        # Anchors cached by an earlier prediction are inference tensors and break the backward pass.
        module.model[-1].shape = None
        # float() and fuse() may leave parameters without gradients; scoring and QAT need them.
        module.requires_grad_(True)
    flow = trace_flow(module)
    quantizable, kept = split_layers(module, flow)
    dead = find_dead(module)
    kept += tuple(layer for layer in quantizable if layer.name in dead)
    quantizable = tuple(layer for layer in quantizable if layer.name not in dead)
    return PreparedModel(
        module=module,
        source=source,
        fingerprint=fingerprint_module(module),
        task=task,
        names=dict(module.names),
        stride=int(module.stride.max()),
        quantizable=quantizable,
        kept=kept,
        flow=flow,
        channels=channels_of(module),
        kpt_shape=_kpt_shape(module, task),
        train_args=_as_dict(getattr(module, "args", None)),
        dead=tuple(layer.name for layer in kept if layer.name in dead),
    )


def split_layers(module: nn.Module, flow: tuple[Op, ...]) -> tuple[tuple[Layer, ...], tuple[Layer, ...]]:
    """List the layers that may be quantized and those that stay in float.

    Kept are the bare convolutions and linear layers of the head, outside its ``Conv`` blocks, and DFL. That is the
    rule of Ultralytics' own INT8 export: they make the outputs (boxes, classes, mask coefficients, keypoints,
    angles), and quantizing them costs most of the accuracy for a small share of the time. Layers that only training
    uses, such as the second head of an end-to-end model, are in neither list.

    Args:
        module: Fused Ultralytics module in eval mode.
        flow: Operations of its forward pass.

    Returns:
        Quantizable layers and kept layers, each in module order.
    """
    from torch import nn

    head = f"model.{len(cast(nn.Sequential, module.model)) - 1}."
    used = {op.module for op in flow}
    quantizable: list[Layer] = []
    kept: list[Layer] = []
    for name, child in module.named_modules():
        if isinstance(child, (nn.Conv2d, nn.Linear)) and name in used:
            in_head_output = name.startswith(head) and (not name.endswith(".conv") or ".dfl." in name)
            target = kept if in_head_output else quantizable
            kind, weight = type(child).__name__.removeprefix("Quant"), child.weight
            target.append(Layer(name, kind, weight.numel(), min(weight.shape[:2])))
    return tuple(quantizable), tuple(kept)


def uniform_formats(model: PreparedModel, format_name: str) -> dict[str, str]:
    """Every quantizable layer to the same format, those left out that there are no kernels of the format for."""
    smallest = FORMATS[format_name].min_channels
    return {layer.name: format_name for layer in model.quantizable if layer.channels >= smallest}


def fingerprint_module(module: nn.Module) -> str:
    """SHA-256 over names, shapes and values of the module's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if "quantizer" in name:
            continue
        array = value.detach().cpu().contiguous().numpy()
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _check_head(head: nn.Module, source: str) -> None:
    """Refuse networks whose outputs are none that ultra-mq can compare, by what their head is.

    Raises:
        ModelError: A transformer decoder (RT-DETR), or a head that takes texts (YOLO-World, YOLOE).
    """
    from ultralytics.nn.modules import head as heads

    taking_texts = tuple(getattr(heads, name) for name in ("WorldDetect", "YOLOEDetect") if hasattr(heads, name))
    if isinstance(head, (heads.Detect, heads.Classify)) and not isinstance(head, taking_texts):
        return
    raise ModelError(
        f"'{source}' ends in a {type(head).__name__}, whose outputs the precision search cannot compare. "
        f"Export it to ONNX with Ultralytics and quantize that file with: ultra-mq ptq MODEL.onnx"
    )


def _kpt_shape(module: Any, task: str) -> tuple[int, int] | None:
    return tuple(getattr(module, "kpt_shape", None) or module.model[-1].kpt_shape) if task == "pose" else None


def _as_dict(args: Any) -> dict[str, Any]:
    return dict(args) if isinstance(args, dict) else dict(vars(args)) if args is not None else {}


def _module_class() -> type[Any]:
    from ultralytics.nn.tasks import BaseModel

    return cast(type[Any], BaseModel)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
