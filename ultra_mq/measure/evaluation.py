# SPDX-License-Identifier: AGPL-3.0-or-later
"""Any artefact of the model through Ultralytics' own validator to an ``Accuracy``."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ultra_mq.core import EvaluationError, progress, quiet
from ultra_mq.measure.accuracy import Accuracy
from ultra_mq.measure.coco import score_coco
from ultra_mq.prepare import Data

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ultra_mq.runtimes import Backend


def evaluate(
    model: Backend | nn.Module,
    data: Data,
    *,
    label: str,
    device: str | torch.device = "cpu",
    batch: int = 4,
) -> Accuracy:
    """Validate a torch module or a backend on the evaluation split.

    Args:
        model: Torch module, or an open backend whose file the validator shall run.
        data: Data to evaluate on; images are letterboxed to squares (``rect=False``) for every kind of model, so
            that all artefacts see the same pixels.
        label: Text of the progress bar.
        device: Torch device for a module and for the metrics.
        batch: Images a forward pass for a module; a static graph brings its own.

    Raises:
        EvaluationError: The validator dropped detections because NMS ran out of time.
    """
    from torch import nn

    from ultra_mq.measure.validator import RecordingValidator

    with tempfile.TemporaryDirectory(prefix="ultra-mq-val-") as folder, quiet() as messages:
        validator = RecordingValidator(save_dir=Path(folder), args=_validator_args(data, str(device), batch))
        validator.image_names = data.evaluation.names
        with contextlib.ExitStack() as stack:
            if isinstance(model, nn.Module):
                target: nn.Module | str = model
            else:
                stack.enter_context(_as_ultralytics_backend(model))
                target = str(model.path)
            advance = stack.enter_context(progress(label, len(data.evaluation.dataset)))
            validator.add_callback("on_val_batch_end", lambda v: advance(v.batch_images))
            stats = validator(model=target)
    if any("NMS time limit" in message for message in messages):
        raise EvaluationError(
            f"{label}: non-maximum suppression ran out of time and dropped detections, so the figures would be wrong. "
            f"Run on a less busy machine or with a smaller batch."
        )
    detections = validator.detections()
    labelled = data.evaluation.labelled
    return Accuracy(
        map50_95=float(stats["metrics/mAP50-95(B)"]) if labelled else None,
        map50=float(stats["metrics/mAP50(B)"]) if labelled else None,
        images=len(detections.images),
        coco=score_coco(detections, data.annotations, data.names) if data.annotations else None,
        agreement=None,
        detections=detections,
    )


def _validator_args(data: Data, device: str, batch: int) -> dict[str, object]:
    return {
        "task": "detect",
        "mode": "val",
        "data": str(data.yaml),
        "imgsz": data.imgsz,
        # Ultralytics applies a single number to the train split alone.
        "fraction": [data.fraction, data.fraction],
        "batch": batch,
        "device": device,
        "rect": False,
        "plots": False,
        "workers": 0,
        "verbose": False,
    }


@contextlib.contextmanager
def _as_ultralytics_backend(backend: Backend) -> Iterator[None]:
    """Let Ultralytics' ``AutoBackend`` run files of this backend's format through it."""
    from ultralytics.nn.autobackend import AutoBackend

    from ultra_mq.measure.validator import RuntimeBackend

    formats = AutoBackend._BACKEND_MAP
    before = formats[backend.format]
    formats[backend.format] = functools.partial(RuntimeBackend, backend)
    try:
        yield
    finally:
        formats[backend.format] = before
