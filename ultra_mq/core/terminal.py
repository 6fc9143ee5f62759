# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the user sees while work goes on: one rich console, progress bars, and quiet libraries."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")

_NOISY = ("modelopt", "onnx_ir", "torch")

console = Console(stderr=True, highlight=False)

_one_bar, _one_silence = threading.Lock(), threading.Lock()


logger = logging.getLogger("ultra_mq")
"""What ultra-mq says while it works: stages at INFO, what a user should know at WARNING."""


def warn(message: str) -> None:
    """Say what the user should know."""
    logger.warning(message)


def announce(stage: str) -> None:
    """Say that a stage begins."""
    logger.info(stage)


class ConsoleHandler(logging.Handler):
    """Prints records on the console: stages in bold, warnings with a mark."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        mark = "[yellow]Warning:[/] {}" if record.levelno >= logging.WARNING else "[bold]{}[/]"
        console.print(mark.format(escape(record.getMessage())), soft_wrap=True)


@contextlib.contextmanager
def shown_log() -> Iterator[None]:
    """Let the log appear on the console, for programs that are ours; a library leaves that to its user."""
    handler = ConsoleHandler()
    before = logger.level, logger.propagate
    # What our dependencies log of graphs and operators is theirs to read, and errors are raised anyway.
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


@contextlib.contextmanager
def silent_streams() -> Iterator[None]:
    """Let nothing of what C libraries print reach the streams of the process, where JSON may be read from."""
    # Two at once would take each other's silence for the streams to put back.
    with _one_silence, open(os.devnull, "w") as silent:  # noqa: PTH123
        saved = {number: os.dup(number) for number in (1, 2)}
        try:
            for number in saved:
                os.dup2(silent.fileno(), number)
            yield
        finally:
            for number, copy in saved.items():
                os.dup2(copy, number)
                os.close(copy)


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yield ``items`` behind a progress bar.

    Args:
        items: What to iterate over.
        description: Text in front of the bar.
        total: Number of items.
    """
    with progress(description, total) as advance:
        for item in items:
            yield item
            advance(1)


@contextlib.contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar and hand out the function that moves it on."""
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as bar:
        task = bar.add_task(description, total=total)
        yield lambda steps: bar.advance(task, steps)


@contextlib.contextmanager
def building(name: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show that an engine is being built, and hand out the function that receives the builder's progress."""
    if not _one_bar.acquire(blocking=False):
        # Engines that are built side by side share the console, which shows one of them.
        yield lambda phase, step, steps: None
        return
    columns = (SpinnerColumn(), TextColumn("Building {task.description}"), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as bar:
            task = bar.add_task(name, total=None)

            def advance(phase: str, step: int, steps: int) -> None:
                bar.update(task, description=f"{name}: {phase} {step}/{steps}")

            yield advance
    finally:
        _one_bar.release()


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextlib.contextmanager
def quiet() -> Iterator[list[str]]:
    """Silence the logs, bars and warnings of the libraries underneath.

    Yields:
        A list that collects what Ultralytics warned about, so that a caller can act on it.
    """
    logger = logging.getLogger("ultralytics")
    collector = _Collector()
    muted = list(logger.handlers)
    levels = [handler.level for handler in muted]
    for handler in muted:
        handler.setLevel(logging.CRITICAL)
    logger.addHandler(collector)
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.INFO))
    names = [name for name in logging.root.manager.loggerDict if name.startswith(_NOISY)]
    noisy = {name: logging.getLogger(name).level for name in names}
    for name in noisy:
        logging.getLogger(name).setLevel(logging.ERROR)
    # Our own bars go on: the console keeps the real stream while the libraries print into the void.
    console_file, console.file = console._file, console.file
    silent = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            warnings.simplefilter("ignore")
            yield collector.messages
    finally:
        console._file = console_file
        logger.removeHandler(collector)
        for handler, level in zip(muted, levels, strict=True):
            handler.setLevel(level)
        for name, level in noisy.items():
            logging.getLogger(name).setLevel(level)
        logging.disable(disabled)
