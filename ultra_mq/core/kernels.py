# SPDX-License-Identifier: AGPL-3.0-or-later
"""What profilers say: the one form in which times of kernels travel between rooms."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KernelTime:
    """What a runtime's profiler says of one of its kernels.

    Attributes:
        nodes: ONNX nodes that were fused into the kernel, as far as the profiler names them.
        ms: Mean time of a pass.
    """

    nodes: tuple[str, ...]
    ms: float
