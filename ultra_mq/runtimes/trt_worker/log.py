# SPDX-License-Identifier: AGPL-3.0-or-later
"""TensorRT's log: errors kept for messages, warnings printed, verbose lines remembered for a while."""

from __future__ import annotations

import collections
import os
import sys
import time
from dataclasses import dataclass, field
from typing import Any

SEVERITIES = "FEWIV"
LINES_KEPT = 200
VERBOSE = "ULTRA_MQ_TRT_VERBOSE"
"""Environment variable; at 1 every line is printed."""


@dataclass
class Log:
    """What TensorRT said.

    Attributes:
        errors: Messages of severity error and worse, since the last command began.
        recent: The last verbose lines; they name the node that the builder was busy with.
        layer_table: TensorRT-RTX's table of the engine it has built.
    """

    errors: list[str] = field(default_factory=list)
    recent: collections.deque[str] = field(default_factory=lambda: collections.deque(maxlen=LINES_KEPT))
    layer_table: str = ""

    def clear(self) -> None:
        """Forget the command before."""
        self.errors.clear()
        self.recent.clear()
        self.layer_table = ""

    def reason(self, otherwise: str) -> str:
        """The last errors as one line."""
        return " ".join(self.errors[-3:]) or otherwise

    def print_recent(self) -> None:
        """Write the remembered lines to the log, after a failure."""
        sys.stderr.writelines(f"{line}\n" for line in self.recent)
        sys.stderr.flush()


def make_logger(trt: Any, log: Log) -> Any:
    """An ``ILogger`` that fills a ``Log``."""
    everything = os.environ.get(VERBOSE) == "1"

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            level = int(severity)
            if level <= int(trt.ILogger.ERROR):
                log.errors.append(message)
            if message.startswith("Layers:"):
                log.layer_table = message
            line = f"{time.time():.3f} {SEVERITIES[level]} {message}"
            if level <= int(trt.ILogger.WARNING) or everything:
                sys.stderr.write(f"{line}\n")
                sys.stderr.flush()
            else:
                log.recent.append(line[:2000])

    return Logger()
