# SPDX-License-Identifier: AGPL-3.0-or-later
"""ONNX to something that runs.

In: ONNX files. Out: engines, and every artefact open behind one ``Backend``.
"""

from ultra_mq.runtimes.backend import Backend, CpuRuntime, open_file
from ultra_mq.runtimes.builders import keep_builders, stop_builders
from ultra_mq.runtimes.cpu import cpu_flags, moves_signed, overflows
from ultra_mq.runtimes.engine import (
    BuildOptions,
    BuildSettings,
    Engine,
    EngineTarget,
    Runtime,
    choose_runtime,
    engine_target,
    find_runtime,
    load_engine,
    save_engine,
)
from ultra_mq.runtimes.engine_build import build
from ultra_mq.runtimes.exported import Exported, read_exported
from ultra_mq.runtimes.inspection import executed_types, find_mismatches, layer_times
from ultra_mq.runtimes.onnxruntime import OnnxRuntime
from ultra_mq.runtimes.tensorrt import TensorRt, read_layers

__all__ = [
    "Backend",
    "BuildOptions",
    "BuildSettings",
    "CpuRuntime",
    "Engine",
    "EngineTarget",
    "Exported",
    "OnnxRuntime",
    "Runtime",
    "TensorRt",
    "build",
    "choose_runtime",
    "cpu_flags",
    "engine_target",
    "executed_types",
    "find_mismatches",
    "find_runtime",
    "keep_builders",
    "layer_times",
    "load_engine",
    "moves_signed",
    "open_file",
    "overflows",
    "read_exported",
    "read_layers",
    "save_engine",
    "stop_builders",
]
