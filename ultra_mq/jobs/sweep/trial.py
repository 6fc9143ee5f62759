# SPDX-License-Identifier: AGPL-3.0-or-later
"""One trial of a sweep, in a process of its own: ``python -m ultra_mq.jobs.sweep.trial FOLDER``.

A trial's folder is the truth about it: ``trial.json`` says what to do, ``result.json`` appears when it is done, and a
lock is held while it runs. Whoever starts it again finds the result, waits for the one who runs it, or runs it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from filelock import FileLock

from ultra_mq.core import UltraMQError, console, shown_log, write_text
from ultra_mq.jobs.pipeline import run_recipe
from ultra_mq.session import make_recipe

REQUEST, RESULT, LOCK = "trial.json", "result.json", "lock"
MEASURES = ("map", "agreement", "latency", "bits", "size")
"""What a trial can be judged by: points, points, milliseconds, effective bits, bytes."""


def run_trial(folder: Path) -> dict[str, Any]:
    """Run the trial of a folder to its end, unless that was done; returns what ``result.json`` holds.

    A recipe that cannot be carried out is a result too: trying again would change nothing.
    """
    with FileLock(folder / LOCK):
        result = folder / RESULT
        if not result.exists():
            document = json.loads((folder / REQUEST).read_text())
            write_text(result, json.dumps(_measure(document, folder)))
            console.print("Finished.")
        found: dict[str, Any] = json.loads(result.read_text())
        return found


def _measure(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    settings = {**document, "project": str(folder), "name": "run", "exist_ok": True}
    try:
        report = run_recipe(make_recipe(settings))
    except UltraMQError as error:
        return {"error": str(error)}
    made = report.variants[-1]
    accuracy = made.engine_accuracy or made.accuracy
    latency = made.engine_latency or made.latency
    values = {
        "map": None if accuracy.main is None else 100 * accuracy.main,
        "agreement": None if accuracy.agreement is None else 100 * accuracy.agreement,
        "latency": latency.p50_ms if latency else None,
        "bits": made.plan.bits if made.plan else None,
        "size": made.engine.size_bytes if made.engine else made.size_bytes,
    }
    return {"values": values, "folder": str(report.folder)}


if __name__ == "__main__":
    with shown_log():
        run_trial(Path(sys.argv[1]))
