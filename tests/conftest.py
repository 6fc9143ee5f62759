# SPDX-License-Identifier: AGPL-3.0-or-later
"""Fixtures: the shapes model and data of the demo everywhere, YOLO11n and the COCO slice where they lie near."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("ULTRA_MQ_SHARED", ROOT.parent / "shared"))
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
# Ultralytics writes its settings to disk whenever they change; the user's own are not ours to touch.
os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp(prefix="ultra-mq-settings-")
sys.path.insert(0, str(ROOT / "demo"))

IMGSZ = 160


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """A cache of our own, shared by all tests of a session and by the processes that run them."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    folder.mkdir(exist_ok=True)
    os.environ["ULTRA_MQ_CACHE"] = str(folder)
    from ultralytics.utils import SETTINGS

    # Runs of tests are no experiments; on by default where MLflow is installed.
    SETTINGS.update(mlflow=False)
    return folder


@pytest.fixture(scope="session")
def weights():
    return ROOT / "demo" / "shapes-yolo11n.pt"


SMALL = """
nc: 5
backbone: [[-1, 1, Conv, [16, 3, 2]], [-1, 1, Conv, [32, 3, 2]], [-1, 1, C2f, [32, True]], [-1, 1, Conv, [48, 3, 2]]]
head: [[[3], 1, Detect, [nc]]]
"""
"""A dozen layers with a residual add and a concat: enough where it matters that a thing is done, not how well."""


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory):
    import torch
    from shapes import NAMES
    from ultralytics import YOLO

    folder = tmp_path_factory.mktemp("small")
    (folder / "small.yaml").write_text(SMALL)
    torch.manual_seed(0)
    yolo = YOLO(folder / "small.yaml", task="detect")
    yolo.model.names = dict(enumerate(NAMES))
    yolo.save(folder / "small.pt")
    return folder / "small.pt"


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    from shapes import make_dataset

    return make_dataset(tmp_path_factory.mktemp("shapes"), train=16, val=12)


@pytest.fixture(scope="session")
def model(weights):
    from ultra_mq.prepare.model import load_model

    return load_model(weights)


@pytest.fixture(scope="session")
def data(shapes, model):
    from ultra_mq.prepare.datasets import load_data

    return load_data(shapes, IMGSZ, model.stride)


@pytest.fixture(scope="session")
def batches(data):
    from ultra_mq.prepare.data import Batches

    return Batches(data.calibration, list(range(8)), batch=4)


@pytest.fixture(scope="session")
def calibration(model, batches):
    from ultra_mq.quantization.ranges import calibrate

    return calibrate(model, batches)


@pytest.fixture(scope="session")
def sensitivity(model, calibration, batches):
    from ultra_mq.plan.gradient import measure_sensitivity

    return measure_sensitivity(model, calibration, batches, "outputs")


@pytest.fixture(scope="session")
def solve():
    """Solve for bits with every layer alone: a function of model, scores and bits."""
    from ultra_mq.plan.cost import layer_sizes
    from ultra_mq.plan.solve import make_choices, solve_plan

    def run(model, sensitivity, bits, cost_model="weights"):
        choices = make_choices(sensitivity, {cost_model: layer_sizes(model, cost_model, IMGSZ)})
        return solve_plan(model, choices, cost_model, bits)

    return run


@pytest.fixture(scope="session")
def plan(model, sensitivity, solve):
    return solve(model, sensitivity, 10)


@pytest.fixture(scope="session")
def quantized(model, plan, calibration):
    """Module of ``plan``; copy it before changing it."""
    from ultra_mq.quantization.apply import apply_formats

    return apply_formats(model, plan.quantized, calibration)


@pytest.fixture(scope="session")
def qdq(quantized, tmp_path_factory):
    """Q/DQ graph of ``quantized``."""
    from ultra_mq.graph.export import export_onnx

    return export_onnx(quantized, tmp_path_factory.mktemp("onnx") / "qdq.onnx", IMGSZ)


@pytest.fixture
def unsigned(qdq, tmp_path):
    """``qdq`` with unsigned activations, which OpenVINO computes right on every CPU."""
    from ultra_mq.graph.unsigned import make_unsigned

    path = tmp_path / "unsigned.onnx"
    shutil.copy(qdq.path, path)
    make_unsigned(path)
    return path


@pytest.fixture(scope="session")
def qdq_fp16(qdq, batches, tmp_path_factory):
    from ultra_mq.graph.autocast import convert_to_fp16

    image = next(iter(batches))["img"][:1].numpy()
    return convert_to_fp16(qdq.path, tmp_path_factory.mktemp("onnx") / "fp16.onnx", image)


def shared_file(relative):
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"needs {path}; set ULTRA_MQ_SHARED to the folder that has {relative}")
    return path


@pytest.fixture(scope="session")
def coco_weights():
    return shared_file("weights/yolo11n.pt")


@pytest.fixture(scope="session")
def coco_slice():
    return shared_file("coco-slice/coco-slice.yaml")


@pytest.fixture
def stand_in(monkeypatch):
    """Workers find the stand-in for TensorRT and CUDA of tests/fake; the argument makes it fail."""

    def behave(how=""):
        monkeypatch.setenv("FAKE_TRT", how)

    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "fake"))
    monkeypatch.delenv("ULTRA_MQ_TRT_PYTHON", raising=False)
    behave()
    return behave


@pytest.fixture(scope="session")
def needs_rtx():
    from ultra_mq.core.errors import BackendError
    from ultra_mq.runtimes.engine import BuildSettings, find_runtime

    try:
        find_runtime(BuildSettings(target="rtx"))
    except BackendError as error:
        if os.environ.get("CI"):
            pytest.fail(f"TensorRT-RTX must work in CI: {error}")
        pytest.skip(str(error))


class Page:
    """A page as headless Chromium shows it."""

    def __init__(self, page, path, scheme="light", width=1200):
        self.page, self.problems = page, []
        page.on("console", lambda message: self.problems.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("request", self._note)
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(path.as_uri())
        page.wait_for_load_state("load")
        if page.query_selector(".chart"):
            page.wait_for_selector("body[data-drawn]", timeout=30_000)

    def _note(self, request):
        """Only the file itself may be asked for."""
        if not request.url.startswith(("data:", "blob:")) and not request.is_navigation_request():
            self.problems.append(f"request: {request.url}")

    def count(self, selector):
        return len(self.page.query_selector_all(selector))

    @property
    def text(self):
        return self.page.inner_text("body")


@pytest.fixture(scope="session")
def browser():
    """Opens a page in Debian's or another Chromium."""
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    switches = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-first-run",
    ]
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=found, args=switches)
        yield lambda path, **settings: Page(chromium.new_page(), path, **settings)
        chromium.close()


@pytest.fixture(autouse=True)
def nothing_is_left():
    """No test may leave a worker process or a shared memory segment behind."""
    yield
    assert not list(Path("/dev/shm").glob(f"ultra-mq-{os.getpid()}-*"))
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    for pid in children.read_text().split() if children.exists() else ():
        assert b"trt_worker" not in Path(f"/proc/{pid}/cmdline").read_bytes()
