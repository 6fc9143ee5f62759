# SPDX-License-Identifier: AGPL-3.0-or-later
"""CUDA's runtime through its own bindings."""

from __future__ import annotations

from typing import Any


class Failure(Exception):  # noqa: N818
    """Something that TensorRT or CUDA refused; the message is its own."""


def load_cuda() -> Any:
    """CUDA's runtime bindings, under their new or old name."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        from cuda import cudart as runtime
    return runtime


def check(result: Any) -> Any:
    """Unpack a CUDA result ``(error, value...)``.

    Raises:
        Failure: The call failed.
    """
    error, values = result[0], result[1:]
    if int(error) != 0:
        raise Failure(f"CUDA: {error!s}")
    return values[0] if len(values) == 1 else values


def select_gpu(cuda: Any, device: int) -> None:
    """Make a GPU the current one of this process; TensorRT builds and runs there.

    Raises:
        Failure: There is no such GPU.
    """
    count = check(cuda.cudaGetDeviceCount())
    if device >= count:
        raise Failure(f"there is no GPU {device}; this process sees {count}")
    check(cuda.cudaSetDevice(device))


def describe_gpu(cuda: Any) -> dict[str, Any]:
    """Name, UUID, compute capability and memory of the current device."""
    properties = check(cuda.cudaGetDeviceProperties(check(cuda.cudaGetDevice())))
    name = properties.name
    uuid = bytes(properties.uuid.bytes).hex()
    return {
        "name": (name.decode() if isinstance(name, bytes) else str(name)).rstrip("\0"),
        # NVML knows GPUs by this name, whatever CUDA_VISIBLE_DEVICES made of their numbers.
        "uuid": "GPU-" + "-".join((uuid[:8], uuid[8:12], uuid[12:16], uuid[16:20], uuid[20:])),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": int(properties.totalGlobalMem),
        "cuda_driver": check(cuda.cudaDriverGetVersion()),
    }
