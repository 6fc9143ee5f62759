# SPDX-License-Identifier: AGPL-3.0-or-later
"""Runtimes behind one small protocol."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np


class Backend(Protocol):
    """An open artefact on a runtime: ``onnxruntime.load(path)``, later OpenVINO and TensorRT.

    Attributes:
        path: The file that is open.
        format: Ultralytics' name of the file format, such as ``onnx`` or ``engine``.
        metadata: Ultralytics metadata stored in the file.
    """

    path: Path
    format: str
    metadata: Mapping[str, str]

    def infer(self, batch: np.ndarray) -> list[np.ndarray]:
        """Run one batch, float32 in [0, 1], shape (B, 3, H, W)."""

    def time(self, runs: int) -> list[float]:
        """Latency in milliseconds of each of ``runs`` passes over one resident batch."""

    def describe(self) -> dict[str, str]:
        """Runtime, version and device, for reports."""
