# SPDX-License-Identifier: AGPL-3.0-or-later
"""Client of the TensorRT worker: starts it, asks, watches it die, and cleans up behind it."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ultra_mq.core import BackendError

PYTHON_VARIABLE = "ULTRA_MQ_TRT_PYTHON"
START_TIMEOUT_S = 120.0
RUNTIMES = {
    "tensorrt": ("TensorRT", "pip install 'ultra-mq[tensorrt]', or name a Python that has it with --trt-python"),
    "tensorrt_rtx": ("TensorRT-RTX", "pip install 'ultra-mq[tensorrt-rtx]'"),
}
"""Module to its name and how to get it."""

LOG_LINES = 6
"""Lines of a dead worker's log that stand in the message."""

# The folder goes again before TensorRT is imported: it holds our own `tensorrt.py`.
_BOOT = (
    "import sys; folder = sys.argv.pop(1); sys.path.insert(0, folder); import trt_worker.loop; "
    "sys.path.remove(folder); trt_worker.loop.main()"
)

Progress = Callable[[str, int, int], None]
"""Receives the phase of a build, the step it is at, and the number of steps."""


@dataclass(frozen=True)
class Interpreter:
    """Where TensorRT lives.

    Attributes:
        module: ``tensorrt`` or ``tensorrt_rtx``.
        python: Interpreter that can import it; our own where it is None and ``ULTRA_MQ_TRT_PYTHON`` is not set.
        device: Number of the GPU that the worker selects.
    """

    module: str = "tensorrt"
    python: str | None = None
    device: int = 0

    @property
    def command(self) -> list[str]:
        """Command line of a worker."""
        own = sys.executable if self.module == "tensorrt_rtx" else os.environ.get(PYTHON_VARIABLE, sys.executable)
        return [self.python or own, "-c", _BOOT, str(Path(__file__).parent), self.module, str(self.device)]


class WorkerError(BackendError):
    """TensorRT refused, or the worker died.

    Attributes:
        log: What the worker wrote.
        died: Whether it died or hung, rather than gave a reason.
    """

    def __init__(self, message: str, log: str, *, died: bool = False) -> None:
        super().__init__(message)
        self.log = log
        self.died = died


class Worker:
    """A running worker process.

    Args:
        interpreter: Where TensorRT lives.

    Raises:
        BackendError: The interpreter is missing, or cannot import TensorRT.
    """

    def __init__(self, interpreter: Interpreter) -> None:
        self.interpreter = interpreter
        # Appending: the worker writes at the end of the file wherever we have just read.
        self._log = tempfile.TemporaryFile("a+b", prefix="ultra-mq-trt-")  # noqa: SIM115
        self._log_begin = 0
        self._answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        command = interpreter.command
        try:
            # A session of its own: Ctrl-C reaches us alone, and we end it with everything it started.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, start_new_session=True
            )
        except OSError as error:
            self._log.close()
            raise BackendError(
                f"Cannot start '{command[0]}' for TensorRT: {error.strerror or error}. "
                f"Pass a Python that has TensorRT with --trt-python or {PYTHON_VARIABLE}."
            ) from error
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self._wait("start", START_TIMEOUT_S, None)
        except WorkerError as error:
            self.close()
            name, hint = RUNTIMES[interpreter.module]
            raise BackendError(f"{name} cannot be used by '{command[0]}' ({error}). {hint}.") from error
        except BaseException:
            self.close()
            raise

    def call(self, command: str, timeout_s: float, on_progress: Progress | None = None, **request: Any) -> Any:
        """Carry out one command.

        Args:
            command: ``version``, ``build``, ``open``, ``infer``, ``time``, ``inspect`` or ``profile``.
            timeout_s: Seconds without an answer after which the worker is taken for hung and killed.
            on_progress: Receives the progress of a build.
            **request: Arguments of the command.

        Raises:
            WorkerError: TensorRT refused, or the worker died or hung.
        """
        line = json.dumps({"command": command, **request}).encode() + b"\n"
        self._log_begin = self._log.seek(0, os.SEEK_END)
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):  # a dead worker is found by _wait, with its log
            stdin.write(line)
            stdin.flush()
        return self._wait(command, timeout_s, on_progress)

    def kill(self) -> None:
        """End the worker and everything it started; whoever waits for an answer is told that it died."""
        if self.alive:
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()

    def close(self) -> None:
        """End the worker, and keep nothing of it."""
        self.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process number of the worker."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def read_log(self) -> str:
        """Everything the worker has written since the last command began."""
        self._log.seek(self._log_begin)
        return self._log.read().decode(errors="replace")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):  # half a line of a worker that was killed
                self._answers.put(json.loads(line))
        self._answers.put(None)

    def _wait(self, what: str, timeout_s: float, on_progress: Progress | None) -> Any:
        while True:
            try:
                answer = self._answers.get(timeout=timeout_s)
            except queue.Empty:
                log = self.read_log()
                self.close()
                raise WorkerError(
                    f"The TensorRT worker gave no answer to '{what}' for {timeout_s:g} s and was ended. "
                    f"{_tail(log)} Try again, or allow it more time.",
                    log,
                    died=True,
                ) from None
            if answer is None:
                self._answers.put(None)  # for the next call, which must not hang either
                code = self._process.wait()
                log = self.read_log()
                died = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
                raise WorkerError(f"The TensorRT worker {died} during '{what}'. {_tail(log)}", log, died=True)
            if answer["event"] == "progress":
                if on_progress is not None:
                    on_progress(answer["phase"], answer["step"], answer["steps"])
            elif answer["event"] == "error":
                raise WorkerError(answer["message"], self.read_log())
            else:
                return answer["value"]


class Segment:
    """Memory shared with a worker, with room for each tensor.

    Args:
        worker: Worker that opens the engine.
        plan: Engine file.
        offset: Where the serialized engine begins.
        timeout_s: Seconds that opening may take.

    Attributes:
        layout: The worker's answer to ``open``.
    """

    def __init__(self, worker: Worker, plan: Path, offset: int, timeout_s: float) -> None:
        with _shared_file() as path:
            self.layout = worker.call("open", timeout_s, plan=str(plan.resolve()), offset=offset, segment=str(path))
            with path.open("r+b") as file:
                self._memory = mmap.mmap(file.fileno(), 0)
        # The name is gone by now, the memory lives as long as a process maps it: nothing is left behind by a kill.

    def array(self, name: str, shape: Sequence[int]) -> np.ndarray:
        """View of a tensor at a shape, at most its largest."""
        tensor = self.layout["tensors"][name]
        if int(np.prod(shape)) > int(np.prod(tensor["shape"])):
            raise BackendError(f"'{name}' has shape {tuple(shape)}, the engine takes at most {tuple(tensor['shape'])}.")
        view: np.ndarray = np.ndarray(tuple(shape), tensor["dtype"], self._memory, tensor["offset"])
        return view


@contextlib.contextmanager
def _shared_file() -> Iterator[Path]:
    memory = Path("/dev/shm")
    handle, name = tempfile.mkstemp(prefix=f"ultra-mq-{os.getpid()}-", dir=memory if memory.is_dir() else None)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _tail(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()][-LOG_LINES:]
    return "It wrote nothing." if not lines else "Its last lines: " + " | ".join(lines)
