# SPDX-License-Identifier: AGPL-3.0-or-later
"""A recipe's device in Torch's and in CUDA's terms."""

from __future__ import annotations

import re

from ultra_mq.core import BackendError


def torch_device(device: str) -> str:
    """Torch's name of a recipe's device: ``0`` is ``cuda:0``, ``auto`` the first GPU where there is one.

    Raises:
        BackendError: It is no device, or a GPU that is not there.
    """
    import torch

    gpus = torch.cuda.device_count()
    if device in ("auto", "cuda"):
        if gpus or device == "auto":
            return "cuda:0" if gpus else "cpu"
    elif device in ("cpu", "mps"):
        return device
    number = re.fullmatch(r"(?:cuda:)?(\d+)", device)
    if number and int(number[1]) < gpus:
        return f"cuda:{number[1]}"
    known = ", ".join(["cpu", *map(str, range(gpus))])
    raise BackendError(
        f"device={device} is not on this machine, where one device is used at a time: {known}. "
        f"Choose one of those, or device=auto."
    )


def gpu_index(device: str) -> int:
    """Number of the GPU that TensorRT uses for a recipe's device; the first one where it names none."""
    number = re.fullmatch(r"(?:cuda:)?(\d+)", device)
    return int(number[1]) if number else 0
