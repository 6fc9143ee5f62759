# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every name of TensorRT that the worker uses exists in the real bindings of TensorRT 10 and 11.

The bindings' wheels import without a GPU when stub libraries stand in for TensorRT's own.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ultra_mq.runtimes import trt_worker

CLASSES = {
    "builder": "Builder", "network": "INetworkDefinition", "config": "IBuilderConfig", "parser": "OnnxParser",
    "engine": "ICudaEngine", "context": "IExecutionContext", "profile": "IOptimizationProfile",
    "inspector": "EngineInspector", "runtime": "Runtime", "layer": "ILayer",
}  # fmt: skip
"""Name of a variable in the worker to the class of TensorRT that it holds."""

RTX_ONLY = [["ComputeCapability"], ["IBuilderConfig", "num_compute_capabilities"],
            ["IBuilderConfig", "set_compute_capability"]]  # fmt: skip
"""Building ahead of time for another GPU, which TensorRT itself is never asked for."""

SYMBOLS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins",
)  # fmt: skip

ASK = """
import importlib, json, sys
trt = importlib.import_module(sys.argv[1])
def exists(chain):
    found = trt
    for part in chain:
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True
print(json.dumps([chain for chain in json.load(sys.stdin) if not exists(chain)]))
"""


def chain_of(node):
    """``trt.BuilderFlag.FP16`` and ``self.engine.x`` as lists of names; None for what is no plain chain."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return parts if node.id == "self" else [node.id, *parts]


def names_used():
    found = set()
    for file in Path(trt_worker.__file__).parent.glob("*.py"):
        chains = [chain_of(node) for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)]
        for owner, *names in filter(None, chains):
            if owner == "trt" and names and names[0] != "__version__":
                found.add(tuple(names))
            # The worker's own Builder has these two.
            elif owner in CLASSES and names and names[0] not in ("strongly_typed", "build"):
                found.add((CLASSES[owner], names[0]))
    return sorted(found)


def missing(module, environment):
    result = subprocess.run(
        [sys.executable, "-c", ASK, module], input=json.dumps(names_used()), capture_output=True, text=True,
        check=False, env={**os.environ, **environment},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout)


def test_the_names_are_found():
    names = names_used()
    assert ("IExecutionContext", "execute_async_v3") in names
    assert ("IBuilderConfig", "set_timing_cache") in names
    assert ("NetworkDefinitionCreationFlag",) in names
    assert len(names) > 40


@pytest.mark.slow
@pytest.mark.parametrize("version", ["10.13.3.9", "11.4.0.106"])
def test_tensorrt(version, tmp_path):
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler for the stub libraries")
    wheel = ["-d", str(tmp_path), f"tensorrt-cu13-bindings=={version}"]
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", *wheel]
    result = subprocess.run(download, capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.skip(f"the bindings of TensorRT {version} cannot be downloaded: {result.stderr[-200:]}")
    shutil.unpack_archive(next(tmp_path.glob("*.whl")), tmp_path / "site", "zip")
    source = tmp_path / "stub.c"
    source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in SYMBOLS))
    for library in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
        name = f"lib{library}.so.{version.split('.')[0]}"
        command = ["cc", "-shared", "-fPIC", str(source), f"-Wl,-soname,{name}", "-o", str(tmp_path / name)]
        subprocess.run(command, check=True)
    environment = {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(tmp_path / "site")}
    assert missing("tensorrt_bindings", environment) == RTX_ONLY


def test_tensorrt_rtx(needs_rtx):
    # AMPERE_PLUS is asked for by --hardware-compatible alone.
    assert [chain for chain in missing("tensorrt_rtx", {}) if chain[-1] != "AMPERE_PLUS"] == []
