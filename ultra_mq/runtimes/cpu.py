# SPDX-License-Identifier: AGPL-3.0-or-later
"""What this machine's CPU can do with 8-bit integers."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

CAPABILITIES = {"avx512_vnni": "AVX512-VNNI", "avx_vnni": "AVX-VNNI", "amx_int8": "AMX-INT8", "avx2": "AVX2"}
"""Flags of Linux that matter to 8-bit integers, by what people call them."""


@functools.cache
def cpu_flags() -> tuple[str, ...]:
    """What an x86 CPU has of ``CAPABILITIES``; empty where that cannot be told."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ()
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return tuple(title for flag, title in CAPABILITIES.items() if flag in line.split())


def allowed_instructions() -> str:
    """What ``ONEDNN_MAX_CPU_ISA`` limits oneDNN, and with it OpenVINO, to; empty for no limit."""
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return "" if allowed in ("ALL", "DEFAULT") else allowed


def moves_signed() -> bool:
    """Whether OpenVINO moves signed activations to unsigned ones on this CPU, and gets other values by it.

    Seen of OpenVINO 2026.4 with every instruction set of x86 but AMX (docs/results/cpu.md).
    """
    limited = bool(allowed_instructions()) and "AMX" not in allowed_instructions()
    return _is_x86() and (limited or (bool(cpu_flags()) and "AMX-INT8" not in cpu_flags()))


def overflows() -> bool:
    """Whether OpenVINO sums products of 8 bits in 16 bits on this CPU, and so cuts off large sums.

    x86 without VNNI multiplies and adds with ``vpmaddubsw``, which saturates (Intel, "Lower Numerical Precision Deep
    Learning Inference and Training", 2018).
    """
    limited = allowed_instructions() in ("SSE41", "AVX", "AVX2", "AVX512_CORE")
    vnni = any("VNNI" in title or "AMX" in title for title in cpu_flags())
    return _is_x86() and (limited or (bool(cpu_flags()) and not vnni))


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")
