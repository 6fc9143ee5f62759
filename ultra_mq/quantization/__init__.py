# SPDX-License-Identifier: AGPL-3.0-or-later
"""Layer to format, carried out on the torch model.

In: a ``PreparedModel``, a format for each layer, images. Out: a ``Calibration``, and a module with quantizers to train,
save and export.
"""

from typing import TYPE_CHECKING, Any

from ultra_mq.quantization.apply import apply_formats, correct_biases, load_biases, save_biases, save_checkpoint
from ultra_mq.quantization.ranges import Calibration, Method, calibrate
from ultra_mq.quantization.record import read_record
from ultra_mq.quantization.recovery import Recovery, load_recovered, load_recovery, recover, save_recovery

if TYPE_CHECKING:
    from ultra_mq.quantization.training import QAT, QuantizedYOLO

__all__ = [
    "QAT",
    "Calibration",
    "Method",
    "QuantizedYOLO",
    "Recovery",
    "apply_formats",
    "calibrate",
    "correct_biases",
    "load_biases",
    "load_recovered",
    "load_recovery",
    "read_record",
    "recover",
    "save_biases",
    "save_checkpoint",
    "save_recovery",
]


def __getattr__(name: str) -> Any:
    # Trainers need torch and Ultralytics at import time, which take seconds.
    if name not in ("QAT", "QuantizedYOLO"):
        raise AttributeError(f"module 'ultra_mq.quantization' has no attribute '{name}'")
    from ultra_mq.quantization import training

    return getattr(training, name)
