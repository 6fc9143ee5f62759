"""Stands in for TensorRT where there is no GPU: an "engine" is an ONNX file, run by ONNX Runtime.

It lets the tests drive the worker, the shared memory and the client with real images and real numbers. It says nothing
about TensorRT; what ran on the real one is in docs/verified.md.

``FAKE_TRT`` in the environment makes it fail: ``hang-run``, ``crash-run``, ``crash-build``, or ``refuse=<name>``, which
refuses to build a graph whose node of that name has quantized inputs, in the words of TensorRT 8.6.

``FAKE_TRT_VERSION`` makes it a strongly typed version: 10 still has the flags and layer types of 8.6, 11 has not.
``FAKE_TRT_RECORD`` names a file for what a build was told: flags, creation flags, types of layers.
"""

import ctypes
import enum
import functools
import json
import os
import signal
import time
from pathlib import Path

import numpy as np

__version__ = os.environ.get("FAKE_TRT_VERSION", "8.6.0")
MAJOR = int(__version__.split(".")[0])
BEHAVIOUR = os.environ.get("FAKE_TRT", "")


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity, message):
        raise NotImplementedError


class Logger(ILogger):
    def __init__(self, severity):
        self.severity = severity

    def log(self, severity, message):
        pass


class IProfiler:
    pass


class TensorIOMode(enum.Enum):
    INPUT, OUTPUT = range(2)


class DataType(enum.Enum):
    FLOAT, HALF = range(2)


WEAKLY_TYPED_FLAGS = ("FP16", "INT8", "PREFER_PRECISION_CONSTRAINTS") if MAJOR < 11 else ()
BuilderFlag = enum.Enum("BuilderFlag", [*WEAKLY_TYPED_FLAGS, "TF32", "VERSION_COMPATIBLE"])


class LayerType(enum.Enum):
    CONSTANT, CAST, QUANTIZE, DEQUANTIZE, SHAPE, OTHER = range(6)


TYPES = {
    "Constant": LayerType.CONSTANT, "Cast": LayerType.CAST, "QuantizeLinear": LayerType.QUANTIZE,
    "DequantizeLinear": LayerType.DEQUANTIZE, "Shape": LayerType.SHAPE,
}  # fmt: skip


class LayerInformationFormat(enum.Enum):
    JSON = 0


class ProfilingVerbosity(enum.Enum):
    DETAILED = 0


CREATION_FLAGS = {"EXPLICIT_BATCH": 0, **({"STRONGLY_TYPED": 1} if MAJOR >= 10 else {})}
NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", CREATION_FLAGS)


def nptype(_):
    return np.float32


class Tensor:
    dtype = DataType.FLOAT


class Layer:
    """A layer of the network; only a weakly typed version can be told its types."""

    def __init__(self, node):
        self.name, self.type, self.num_outputs = node.name, TYPES.get(node.op_type, LayerType.OTHER), 1
        self.told = []

    def get_output(self, index):
        return Tensor()

    def __setattr__(self, name, value):
        if name == "precision":
            if MAJOR >= 11:
                raise AttributeError("ILayer has no attribute 'precision'")
            self.told.append(value.name)
        object.__setattr__(self, name, value)

    def set_output_type(self, index, kind):
        self.told.append(f"out {kind.name}")


class Network:
    def __init__(self, flags):
        self.flags, self.content = flags, b""

    @functools.cached_property
    def layers(self):
        import onnx

        return [Layer(node) for node in onnx.load_from_string(self.content).graph.node]

    @property
    def num_layers(self):
        return len(self.layers)

    def get_layer(self, index):
        return self.layers[index]


class Cache:
    def __init__(self, content):
        self.content = content

    def serialize(self):
        return self.content + b"+"


class Config:
    def __init__(self):
        self.flags = {"TF32"}  # on by default, as TensorRT has it

    def set_flag(self, flag):
        self.flags.add(flag.name)

    def clear_flag(self, flag):
        self.flags.discard(flag.name)

    def create_timing_cache(self, content):
        return Cache(content)

    def set_timing_cache(self, cache, ignore_mismatch):
        self.cache = cache
        return True

    def get_timing_cache(self):
        return self.cache


class OnnxParser:
    num_errors = 0

    def __init__(self, network, logger):
        self.network = network

    def parse(self, content):
        self.network.content = content
        return True


class Builder:
    def __init__(self, logger):
        self.logger = logger

    def create_network(self, flags):
        return Network(flags)

    def create_builder_config(self):
        return Config()

    def build_serialized_network(self, network, config):
        fail("build")
        if "FAKE_TRT_RECORD" in os.environ:
            types = {layer.name: layer.told for layer in network.layers if layer.told}
            told = {"flags": sorted(config.flags), "creation_flags": network.flags, "types": types}
            Path(os.environ["FAKE_TRT_RECORD"]).write_text(json.dumps(told))
        if BEHAVIOUR.startswith("refuse="):
            name = BEHAVIOUR.partition("=")[2]
            if quantized(network.content, name):
                words = f"10: Could not find any implementation for node a.weight + {name} + PWN(b)."
                self.logger.log(ILogger.ERROR, words)
                return None
        return network.content


def quantized(content, name):
    import onnx

    graph = onnx.load_from_string(content).graph
    dequantized = {output for node in graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    return any(node.name == name and set(node.input) & dequantized for node in graph.node)


def fail(command):
    if f"crash-{command}" == BEHAVIOUR:
        ILogger()
        os.write(2, b"a segmentation fault is coming\n")
        os.kill(os.getpid(), signal.SIGSEGV)
    if f"hang-{command}" == BEHAVIOUR:
        time.sleep(600)


class Runtime:
    def __init__(self, logger):
        self.logger = logger

    def deserialize_cuda_engine(self, content):
        try:
            return Engine(content)
        except Exception:
            self.logger.log(ILogger.ERROR, "Serialization assertion failed: magicTagRead == kMAGIC_TAG")
            return None


class Engine:
    def __init__(self, content):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if MAJOR >= 10:  # it cannot fuse Q/DQ with scales in FP16
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        self.session = onnxruntime.InferenceSession(content, options)
        values = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.shapes = {value.name: tuple(value.shape) for value in values}
        self.names = list(self.shapes)
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, index):
        return self.names[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name == self.names[0] else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return DataType.FLOAT

    def get_tensor_profile_shape(self, name, profile):
        return [self.shapes[name]] * 3

    def create_execution_context(self):
        return Context(self)

    def create_engine_inspector(self):
        return Inspector()


class Inspector:
    execution_context = None

    def get_engine_information(self, kind):
        layer = {"Name": "/model.0/conv/Conv", "LayerType": "CaskConvolution", "Weights": {"Type": "Int8"}}
        return json.dumps({"Layers": [layer]})


class Context:
    profiler = None

    def __init__(self, engine):
        self.engine = engine
        self.addresses = {}

    def set_input_shape(self, name, shape):
        return tuple(shape) == self.engine.shapes[name]

    def get_tensor_shape(self, name):
        return self.engine.shapes[name]

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        from cuda.bindings import runtime

        fail("run")
        if runtime.CAPTURED:
            runtime.CAPTURED[-1].append(self.run)
            return True
        return self.run()

    def run(self):
        arrays = {name: self.array(name) for name in self.engine.names}
        results = self.engine.session.run(None, {self.engine.names[0]: arrays[self.engine.names[0]]})
        for name, result in zip(self.engine.names[1:], results, strict=True):
            arrays[name][...] = result
        if self.profiler:
            self.profiler.report_layer_time("/model.0/conv/Conv", 0.5)
        return True

    def array(self, name):
        shape = self.engine.shapes[name]
        buffer = (ctypes.c_float * int(np.prod(shape))).from_address(self.addresses[name])
        return np.ctypeslib.as_array(buffer).reshape(shape)
