"""Stands in for TensorRT where there is no GPU: an "engine" is an ONNX file, run by ONNX Runtime.

It lets the tests drive the worker, the shared memory and the client with real images and real numbers. It says nothing
about TensorRT; what ran on the real one is in docs/verified.md.

``FAKE_TRT`` in the environment makes it fail: ``hang-run``, ``crash-run``, ``crash-build``, or ``refuse=<name>``, which
refuses to build a graph whose node of that name has quantized inputs, in the words of TensorRT 8.6.
"""

import ctypes
import enum
import json
import os
import signal
import time

import numpy as np

__version__ = "8.6.0"
BEHAVIOUR = os.environ.get("FAKE_TRT", "")


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity, message):
        raise NotImplementedError


class IProfiler:
    pass


class TensorIOMode(enum.Enum):
    INPUT, OUTPUT = range(2)


class DataType(enum.Enum):
    FLOAT, HALF = range(2)


class BuilderFlag(enum.Enum):
    FP16, INT8, PREFER_PRECISION_CONSTRAINTS, TF32 = range(4)


class LayerType(enum.Enum):
    CONSTANT = 0


class LayerInformationFormat(enum.Enum):
    JSON = 0


class ProfilingVerbosity(enum.Enum):
    DETAILED = 0


class NetworkDefinitionCreationFlag(enum.IntEnum):
    EXPLICIT_BATCH = 0


def nptype(_):
    return np.float32


class Network:
    num_layers = 0


class Cache:
    def __init__(self, content):
        self.content = content

    def serialize(self):
        return self.content + b"+"


class Config:
    def set_flag(self, flag):
        pass

    def clear_flag(self, flag):
        pass

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
        return Network()

    def create_builder_config(self):
        return Config()

    def build_serialized_network(self, network, config):
        fail("build")
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

        self.session = onnxruntime.InferenceSession(content)
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
        fail("run")
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
