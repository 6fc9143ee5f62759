# SPDX-License-Identifier: AGPL-3.0-or-later
"""Requests in, answers out, until standard input ends or the parent is gone."""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .building import Builder
from .cuda import Failure, describe_gpu, load_cuda, select_gpu
from .log import Log, make_logger
from .running import OpenEngine


class Commands:
    """The commands; at most one engine is open.

    Args:
        module: ``tensorrt`` or ``tensorrt_rtx``.
        answer: Sends one answer.
        device: Number of the GPU to use.
    """

    def __init__(self, module: str, answer: Callable[[dict[str, Any]], None], device: int = 0) -> None:
        self.trt: Any = importlib.import_module(module)
        self.log = Log()
        self.logger = make_logger(self.trt, self.log)
        self.builder = Builder(self.trt, self.logger, self.log, answer, rtx=module == "tensorrt_rtx")
        self.opened: OpenEngine | None = None
        self.no_gpu = ""
        try:
            select_gpu(load_cuda(), device)
        except Exception as error:  # TensorRT-RTX builds without a GPU; whoever needs one is told then
            self.no_gpu = str(error)

    def version(self) -> dict[str, Any]:
        """Versions and device; ``gpu`` is None where there is none."""
        gpu = None if self.no_gpu else describe_gpu(load_cuda())
        return {
            "version": self.trt.__version__,
            "strongly_typed": self.builder.strongly_typed,
            "python": ".".join(map(str, sys.version_info[:3])),
            "gpu": gpu,
            "no_gpu": self.no_gpu,
        }

    def build(self, **request: Any) -> dict[str, Any]:
        """Build an engine from an ONNX file and write the plan."""
        return self.builder.build(**request)

    def open(self, plan: str, offset: int, segment: str) -> dict[str, Any]:
        """Deserialize an engine and lay out its tensors in the segment."""
        if self.no_gpu:
            raise Failure(self.no_gpu)
        content = Path(plan).read_bytes()[offset:]
        self.opened = OpenEngine(self.trt, self.logger, self.log, content, segment)
        return self.opened.describe()

    def infer(self, shapes: dict[str, list[int]]) -> dict[str, Any]:
        """Run the tensors that lie in the segment."""
        return self._opened().infer(shapes)

    def time(self, runs: int, warmup_ms: float) -> dict[str, Any]:
        """Latency samples of the resident input."""
        return self._opened().time(runs, warmup_ms)

    def inspect(self) -> dict[str, Any]:
        """The inspector's JSON of the open engine."""
        return {"information": self._opened().inspect()}

    def profile(self, runs: int) -> dict[str, Any]:
        """Mean milliseconds of each layer, by IProfiler, in a pass of its own."""
        return {"layers_ms": self._opened().profile(runs)}

    def _opened(self) -> OpenEngine:
        if self.opened is None:
            raise Failure("no engine is open")
        return self.opened


COMMANDS = ("version", "build", "open", "infer", "time", "inspect", "profile")


def end_with_parent(parent: int) -> None:
    """End this process when the one that started it is gone; a build does not read its input meanwhile."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(3)


def main() -> None:
    """Answer requests until standard input ends."""
    threading.Thread(target=end_with_parent, args=(os.getppid(),), daemon=True).start()
    # Libraries print to standard output from C++; the answers get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    lock = threading.Lock()

    def answer(document: dict[str, Any]) -> None:
        with lock:
            answers.write(json.dumps(document) + "\n")
            answers.flush()

    try:
        worker = Commands(sys.argv[1], answer, int(sys.argv[2]))
    except Exception as error:
        answer({"event": "error", "message": f"{type(error).__name__}: {error}"})
        return
    answer({"event": "result", "value": None})
    for line in sys.stdin:
        request = json.loads(line)
        command = request.pop("command")
        try:
            if command not in COMMANDS:
                raise Failure(f"unknown command '{command}'")
            answer({"event": "result", "value": getattr(worker, command)(**request)})
        except Failure as error:
            answer({"event": "error", "message": str(error)})
        except Exception as error:
            traceback.print_exc()
            answer({"event": "error", "message": worker.log.reason(f"{type(error).__name__}: {error}")})
