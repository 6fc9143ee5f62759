# SPDX-License-Identifier: AGPL-3.0-or-later
"""Runtimes behind one small protocol."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np


class Backend(Protocol):
    """An open artefact on a runtime, such as ``OnnxRuntime(path)``."""

    @property
    def path(self) -> Path:
        """The file that is open."""

    @property
    def format(self) -> str:
        """Ultralytics' name of the file format, such as ``onnx`` or ``engine``."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Ultralytics metadata stored in the file."""

    def infer(self, batch: np.ndarray) -> list[np.ndarray]:
        """Run one batch, float32 in [0, 1], shape (B, 3, H, W)."""

    def time(self, runs: int) -> list[float]:
        """Latency in milliseconds of each of ``runs`` passes over one resident batch."""

    def describe(self) -> dict[str, str]:
        """Runtime, version and device, for reports."""
