# SPDX-License-Identifier: AGPL-3.0-or-later
"""The peer that most users have: INT8 by TensorRT's own calibrator (implicit quantization, up to TensorRT 10).

    $TRT_PYTHON scripts/tensorrt_calibrator.py MODEL.onnx IMAGES.npy MODEL.engine --level 1 --tactic-source NAME

Runs in the Python that has TensorRT, which needs numpy and cuda.bindings beside it. The rules are those of Ultralytics
8.4's ``onnx2engine`` for TensorRT 7 to 10: INT8 and FP16 flags, min-max calibration, the head's sigmoids in FP32, the
head's output convolutions and DFL in FP16.

IMAGES.npy holds letterboxed images, uint8, shape (N, C, H, W).
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path

import numpy as np
import tensorrt as trt
from cuda.bindings import runtime as cuda


class Calibrator(trt.IInt8Calibrator):
    """Feeds images to the builder one batch at a time."""

    def __init__(self, images: np.ndarray, batch: int, algorithm: trt.CalibrationAlgoType) -> None:
        super().__init__()
        self.images, self.batch, self.algorithm, self.next = images, batch, algorithm, 0
        error, self.memory = cuda.cudaMalloc(4 * images[:batch].size)
        assert int(error) == 0, error

    def get_algorithm(self) -> trt.CalibrationAlgoType:
        """How ranges become scales."""
        return self.algorithm

    def get_batch_size(self) -> int:
        """Images of a pass."""
        return self.batch

    def get_batch(self, names: list[str]) -> list[int] | None:
        """Address of the next images on the GPU; None at the end."""
        images = self.images[self.next : self.next + self.batch].astype(np.float32) / 255
        if len(images) < self.batch:
            return None
        self.next += self.batch
        cuda.cudaMemcpy(self.memory, images.ctypes.data, images.nbytes, cuda.cudaMemcpyKind.cudaMemcpyHostToDevice)
        return [int(self.memory)]

    def read_calibration_cache(self) -> None:
        """Calibrate anew every time."""
        return

    def write_calibration_cache(self, cache: bytes) -> None:
        """Keep nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--metadata", type=Path, help="JSON of Ultralytics' metadata, for the header")
    parser.add_argument("--level", type=int)
    parser.add_argument("--tactic-source", action="append")
    parser.add_argument("--algorithm", choices=("minmax", "entropy"), default="minmax")
    parser.add_argument("--device", type=int, default=0)
    arguments = parser.parse_args()
    cuda.cudaSetDevice(arguments.device)
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))
    onnx = trt.OnnxParser(network, logger)
    if not onnx.parse(arguments.onnx.read_bytes()):
        raise SystemExit(str(onnx.get_error(0).desc()))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.set_flag(trt.BuilderFlag.INT8)
    config.set_flag(trt.BuilderFlag.FP16)
    if arguments.level is not None:
        config.builder_optimization_level = arguments.level
    if arguments.tactic_source:
        config.set_tactic_sources(sum(1 << int(getattr(trt.TacticSource, name)) for name in arguments.tactic_source))
    kinds = trt.CalibrationAlgoType
    algorithm = {"minmax": kinds.MINMAX_CALIBRATION, "entropy": kinds.ENTROPY_CALIBRATION_2}[arguments.algorithm]
    batch = network.get_input(0).shape[0]
    config.int8_calibrator = Calibrator(np.load(arguments.images, mmap_mode="r"), batch, algorithm)
    keep_head_in_float(network, config)
    start = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise SystemExit("TensorRT could not build the engine; its log says why.")
    metadata = json.loads(arguments.metadata.read_text()) if arguments.metadata else {}
    header = json.dumps(metadata).encode()
    arguments.engine.write_bytes(len(header).to_bytes(4, "little") + header + bytes(plan))
    print(f"{arguments.engine}: built in {time.perf_counter() - start:.0f} s")


def keep_head_in_float(network: trt.INetworkDefinition, config: trt.IBuilderConfig) -> None:
    """Ultralytics' precision constraints on the head."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    head = max(int(number) for layer in layers for number in re.findall(r"/model\.(\d+)/", layer.name))
    for layer in layers:
        if f"/model.{head}/" not in layer.name:
            continue
        if layer.type == trt.LayerType.ACTIVATION and "sigmoid" in layer.name.lower():
            kind = trt.float32
        elif layer.type == trt.LayerType.CONVOLUTION and (layer.name.endswith(".2/Conv") or "/dfl/" in layer.name):
            kind = trt.float16
        else:
            continue
        layer.precision = kind
        for index in range(layer.num_outputs):
            layer.set_output_type(index, kind)
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)


if __name__ == "__main__":
    main()
