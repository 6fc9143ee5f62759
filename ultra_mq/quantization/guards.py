# SPDX-License-Identifier: AGPL-3.0-or-later
"""Trainings that would lose the quantizers or their plan, refused before their first step."""

from __future__ import annotations

import functools
from typing import Any

from ultra_mq.core import ModelError


@functools.cache
def refuse_to_forget() -> None:
    """From now on no float network takes the weights of a quantized one without a word.

    ``YOLO("quantized.pt").train()`` builds a fresh float network and copies the weights that match: the quantizers are
    gone, and nothing says so. Ultralytics has no hook there, so its ``load`` is asked first.
    """
    from ultralytics.nn.tasks import BaseModel
    from ultralytics.utils.torch_utils import is_qat

    load = BaseModel.load

    @functools.wraps(load)
    def checked(self: Any, weights: Any, *args: Any, **kwargs: Any) -> Any:
        source = weights["model"] if isinstance(weights, dict) else weights
        if getattr(source, "quantization", None) is not None and is_qat(source) and not is_qat(self):
            raise ModelError(
                "This checkpoint is quantized, and YOLO(...).train() would train a float network with its weights. "
                "Train it, or resume its training, with ultra_mq.load(path).train(...), which keeps the quantizers."
            )
        return load(self, weights, *args, **kwargs)

    BaseModel.load = checked


def check_training(network: Any, data: dict[str, Any], args: Any) -> None:
    """Refuse to train a quantized network with settings that do not fit it.

    Args:
        network: Quantized Ultralytics module.
        data: The training's data, as Ultralytics resolved it.
        args: The training's settings.

    Raises:
        ModelError: Classes differ in number, or a setting would replace the quantizers or their graph.
    """
    classes = getattr(network.model[-1], "nc", None) or len(network.names)
    if data.get("nc") not in (None, classes):
        why = " (single_cls=True makes it one)" if args.single_cls else ""
        raise ModelError(
            f"The quantized model knows {classes} classes and the data of this training has {data['nc']}{why}. "
            f"Train the float model on that data first, then quantize it."
        )
    if args.quantize == 8:
        raise ModelError(
            "quantize=8 would replace the plan of the quantized model by Ultralytics' uniform INT8. Leave it out: the "
            "quantizers are there and are trained with."
        )
    if args.compile:
        raise ModelError("compile cannot be used with quantizers. Train with compile=False.")
