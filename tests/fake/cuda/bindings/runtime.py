"""Stands in for CUDA's runtime: device memory is host memory, a stream is nothing, an event is a moment."""

import ctypes
import enum
import os
import time
import types

cudaStreamNonBlocking = 1
BUFFERS = []


class cudaMemcpyKind(enum.Enum):
    cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost = range(2)


class cudaStreamCaptureMode(enum.Enum):
    cudaStreamCaptureModeThreadLocal = 0


CURRENT = [0]


def cudaGetDeviceCount():
    return 0, int(os.environ.get("FAKE_GPUS", "1"))


def cudaSetDevice(device):
    CURRENT[0] = device
    return (0,)


def cudaGetDevice():
    return 0, CURRENT[0]


def cudaGetDeviceProperties(device):
    name = b"Stand-in GPU\0" if device == 0 else f"Stand-in GPU {device}\0".encode()
    uuid = types.SimpleNamespace(bytes=bytes([device]) * 16)
    return 0, types.SimpleNamespace(name=name, uuid=uuid, major=9, minor=0, totalGlobalMem=1 << 30)


def cudaDriverGetVersion():
    return 0, 13000


def cudaMemGetInfo():
    return 0, 1 << 30, 1 << 30


def cudaMalloc(size):
    BUFFERS.append(ctypes.create_string_buffer(size))
    return 0, ctypes.addressof(BUFFERS[-1])


def cudaMemcpyAsync(target, source, size, kind, stream):
    ctypes.memmove(target, source, size)
    return (0,)


def cudaStreamCreateWithFlags(flags):
    return 0, 1


def cudaStreamSynchronize(stream):
    return (0,)


CAPTURED = []
"""Passes of a capture under way, the innermost last; FAKE_CUDA_GRAPH=1 lets one begin."""


def cudaStreamBeginCapture(stream, mode):
    if os.environ.get("FAKE_CUDA_GRAPH") != "1":
        return (900,)
    CAPTURED.append([])
    return (0,)


def cudaStreamEndCapture(stream):
    return 0, CAPTURED.pop()


def cudaGraphInstantiate(graph, flags):
    return 0, graph


def cudaGraphLaunch(graph, stream):
    for launch in graph:
        launch()
    return (0,)


def cudaEventCreate():
    return 0, types.SimpleNamespace(time=0.0)


def cudaEventRecord(event, stream):
    event.time = time.perf_counter()
    return (0,)


def cudaEventSynchronize(event):
    return (0,)


def cudaEventElapsedTime(begin, end):
    return 0, (end.time - begin.time) * 1e3


def cudaEventDestroy(event):
    return (0,)
