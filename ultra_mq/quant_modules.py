# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where checkpoints of 0.1.0 look for the record of their quantization; nothing else may import it."""

from ultra_mq.quantization.record import Record010 as QuantizationRecord

__all__ = ["QuantizationRecord"]
