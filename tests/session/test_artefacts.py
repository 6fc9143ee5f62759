# SPDX-License-Identifier: AGPL-3.0-or-later
"""Keys of the cache: everything that a file depends on, and nothing else, makes another entry."""

import dataclasses
from pathlib import Path

import pytest

from ultra_mq.core.errors import BackendError, PlanError
from ultra_mq.plan.precision_plan import uniform_plan
from ultra_mq.runtimes.engine import Runtime
from ultra_mq.session import artefacts as module
from ultra_mq.session import measuring
from ultra_mq.session.artefacts import Artefacts, evaluate_file, float_artefacts
from ultra_mq.session.recipe import make_recipe
from ultra_mq.session.session import open_session, with_recipe
from ultra_mq.session.target import Target

GPU = {"name": "H100", "compute_capability": "9.0", "uuid": "GPU-1"}


@pytest.fixture(scope="module")
def session(weights, shapes):
    document = {
        "model": str(weights), "data": str(shapes), "imgsz": 160, "calibration": {"images": 4, "bias_correction": 0},
        "variants": [{"name": "m", "bits": 9}],
    }  # fmt: skip
    return open_session(make_recipe(document))


@pytest.fixture
def asked(session, monkeypatch):
    """Stage and key of each cache entry that is asked for; nothing is made."""
    entries = []

    def folder(self, stage, depends_on, make):
        entries.append((stage, repr(depends_on)))
        return self.root / stage / str(len(entries))

    monkeypatch.setattr("ultra_mq.core.cache.Cache.folder", folder)
    return entries


def keys(asked, ask):
    asked.clear()
    ask()
    return list(asked)


def test_fp16_of_a_float_plan_depends_on_autocasts_image(session, asked):
    other = with_recipe(session, session.recipe.model_copy(update={"seed": 5}))
    assert keys(asked, lambda: float_artefacts(session).graph) == keys(asked, lambda: float_artefacts(other).graph)
    assert keys(asked, lambda: float_artefacts(session).fp16) != keys(asked, lambda: float_artefacts(other).fp16)


def test_an_engine_depends_on_the_typed_graph_where_that_is_built(session, asked):
    other = with_recipe(session, session.recipe.model_copy(update={"seed": 5}))
    typed, weak = (Runtime("tensorrt", "1", strongly_typed, GPU) for strongly_typed in (True, False))
    for runtime, same in ((weak, True), (typed, False)):
        one, two = (keys(asked, lambda s=s, r=runtime: float_artefacts(s).engine(r)) for s in (session, other))
        assert (one == two) is same


def test_an_engine_serves_every_gpu_of_its_kind(session, asked):
    first = Runtime("tensorrt", "8.6", False, GPU)
    second = Runtime("tensorrt", "8.6", False, {**GPU, "uuid": "GPU-2"})
    smaller = Runtime("tensorrt", "8.6", False, {**GPU, "name": "L4"})
    one, two, three = (keys(asked, lambda r=r: float_artefacts(session).engine(r)) for r in (first, second, smaller))
    assert one == two != three


@pytest.mark.parametrize("change", [{"version": "1.25"}, {"device": "a CPU without VNNI"}])
def test_accuracy_depends_on_the_runtime(session, asked, monkeypatch, qdq, change):
    """The same INT8 graph scores 0.01 of mAP on OpenVINO and a CPU without VNNI."""
    monkeypatch.setattr(measuring, "load_accuracy", lambda folder: folder)
    about = {"version": "1.24", "device": "a CPU"}
    one, two = (
        keys(asked, lambda a=a: evaluate_file(session, qdq.path, "x", Target("onnxruntime", 1, a)))
        for a in (about, {**about, **change})
    )
    assert one != two


def test_parity_depends_on_the_device(session, asked, monkeypatch):
    monkeypatch.setattr(module, "load_accuracy", lambda folder: folder)
    monkeypatch.setattr(module, "compare", lambda accuracy, reference: accuracy)
    monkeypatch.setattr(module, "check_parity", lambda *_: None)
    on_gpu = dataclasses.replace(session, device="cuda:0")
    reference = dataclasses.make_dataclass("Reference", ["predictions"])(None)
    monkeypatch.setattr(module.json, "loads", lambda text: [])
    monkeypatch.setattr(Path, "read_text", lambda self: "")
    one, two = (keys(asked, lambda s=s: float_artefacts(s).check_parity(None, reference)) for s in (session, on_gpu))
    assert one != two


def test_channels_are_part_of_every_key(session):
    gray = dataclasses.replace(session, data=dataclasses.replace(session.data, channels=1))
    assert gray.evaluation_key != session.evaluation_key
    thin = dataclasses.replace(session, model=dataclasses.replace(session.model, channels=1))
    assert float_artefacts(thin).key != float_artefacts(session).key


def test_the_annotations_are_not_carried_in_the_key(session, tmp_path):
    (tmp_path / "instances.json").write_text("{}" * 1000)
    annotated = dataclasses.replace(
        session, data=dataclasses.replace(session.data, annotations=tmp_path / "instances.json")
    )
    assert len(annotated.evaluation_key["annotations"]) == 64


def test_other_settings_read_the_images_no_second_time(session, monkeypatch):
    _ = session.evaluation_key
    monkeypatch.setattr("ultra_mq.session.session.fingerprint_split", lambda split: pytest.fail("read again"))
    assert with_recipe(session, session.recipe).evaluation_key == session.evaluation_key


def test_a_runtime_is_asked_once(session, monkeypatch):
    """It was started for the search, for the engines and for their timing: seconds each."""
    asked = []

    def find(settings):
        asked.append(settings.target)
        raise BackendError("there is none")

    monkeypatch.setattr("ultra_mq.session.session.find_runtime", find)
    fresh = dataclasses.replace(session, _asked={})
    for _ in range(3):
        with pytest.raises(BackendError, match="there is none"):
            fresh.engine_runtime("tensorrt")
    assert asked == ["tensorrt"]


def test_a_plan_of_other_weights_is_refused(session):
    plan = dataclasses.replace(uniform_plan(session.model, "int8"), model_fingerprint="0")
    with pytest.raises(PlanError, match="has other weights"):
        Artefacts(session, plan).module()
