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
from ultra_mq.prepare import Data, height_width, images_must_be_there

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
    table: bool = True,
) -> Accuracy:
    """Validate a torch module or a backend on the evaluation split.

    Args:
        model: Torch module, or an open backend whose file the validator shall run.
        data: Data to evaluate on; images are letterboxed to one shape (``rect=False``) for every kind of model, so
            that all artefacts see the same pixels.
        label: Text of the progress bar.
        device: Torch device for a module and for the metrics.
        batch: Images a forward pass for a module; a static graph brings its own.
        table: Whether the COCO table is made, where an annotation file belongs to the data.

    Raises:
        DataError: An image is gone.
        EvaluationError: The validator dropped detections because NMS ran out of time.
    """
    from torch import nn

    from ultra_mq.measure.validator import VALIDATORS

    size = batch if isinstance(model, nn.Module) else model.batch
    with tempfile.TemporaryDirectory(prefix="ultra-mq-val-") as folder, quiet() as messages:
        validator = VALIDATORS[data.task](
            dataloader=_loader(data, size, device),
            save_dir=Path(folder),
            args=_validator_args(data, str(device), size),
        )
        validator.image_names = data.evaluation.names
        annotations = data.annotations if table and data.task != "classify" else None
        validator.full_masks = annotations is not None
        with contextlib.ExitStack() as stack:
            if isinstance(model, nn.Module):
                target: nn.Module | str = model
            else:
                stack.enter_context(_as_ultralytics_backend(model))
                target = str(model.path)
            advance = stack.enter_context(progress(label, len(data.evaluation.dataset)))
            validator.add_callback("on_val_batch_end", lambda v: advance(v.batch_images))
            stack.enter_context(images_must_be_there())
            stats = validator(model=target)
    if any("NMS time limit" in message for message in messages):
        raise EvaluationError(
            f"{label}: non-maximum suppression ran out of time and dropped detections, so the figures would be wrong. "
            f"Run on a less busy machine or with a smaller batch."
        )
    predictions = validator.predictions()
    return Accuracy(
        task=data.task,
        metrics={name: float(value) for name, value in stats.items()} if data.evaluation.labelled else {},
        images=len(predictions.images),
        coco=score_coco(validator.full_predictions(), annotations, data.names) if annotations else None,
        agreement=None,
        shift=None,
        predictions=predictions,
    )


def _loader(data: Data, batch: int, device: str | torch.device) -> object:
    """The evaluation split as Ultralytics' validator takes it, in its own order."""
    import torch
    from ultralytics.data.build import build_dataloader

    return build_dataloader(
        data.evaluation.dataset, batch, workers=0, shuffle=False, rank=-1, device=torch.device(device)
    )


def _validator_args(data: Data, device: str, batch: int) -> dict[str, object]:
    return {
        "task": data.task,
        "mode": "val",
        "data": str(data.source),
        "imgsz": max(height_width(data.imgsz)),
        # Ultralytics applies a single number to the train split alone.
        "fraction": [data.fraction, data.fraction],
        "batch": batch,
        "device": device,
        "rect": False,
        "single_cls": data.single_cls,
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
