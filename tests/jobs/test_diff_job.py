# SPDX-License-Identifier: AGPL-3.0-or-later
import json
import shutil

import pytest
from click.testing import CliRunner

from ultra_mq.cli import main


@pytest.fixture(scope="module")
def files(weights, qdq, tmp_path_factory):
    """A float checkpoint and a quantized ONNX file of it, of 160 pixels."""
    folder = tmp_path_factory.mktemp("files")
    shutil.copy(weights, folder / "float.pt")
    shutil.copy(qdq.path, folder / "mixed.onnx")
    return folder


def diff(*arguments):
    return CliRunner().invoke(main, ["diff", *map(str, arguments)])


def test_a_checkpoint_against_its_onnx(files, shapes, tmp_path):
    done = diff(
        files / "float.pt", files / "mixed.onnx", f"data={shapes}", f"project={tmp_path}", "--pictures", 2, "--json"
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["images"] == 12
    assert set(found["losses"]) == {"map", "agreement"}
    assert 0 <= found["losses"]["agreement"]["points"] < 30
    names = {one["name"] for one in found["class_losses"]["agreement"]}
    assert names == {"circle", "square", "triangle", "star", "cross"}
    folder = tmp_path / "diff"
    assert all((folder / picture["file"]).is_file() for picture in found["pictures"])
    text = (folder / "diff.html").read_text()
    assert "mixed.onnx against float.pt" in text
    assert "<th>before</th><th>after</th>" in text
    assert {"classes.csv", "diff.json"} <= {path.name for path in folder.iterdir()}


def test_a_file_against_itself_is_the_same(files, shapes, tmp_path):
    done = diff(files / "mixed.onnx", files / "mixed.onnx", f"data={shapes}", f"project={tmp_path}")
    assert done.exit_code == 0, done.output
    assert "than their interval: none" in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("float.pt", "nowhere.onnx", "does not exist"),
        ("nowhere.pt", "mixed.onnx", "does not exist"),
        ("broken.pt", "mixed.onnx", "is no checkpoint of Ultralytics"),
        ("float.pt", "segment.pt", "Compare two of one task"),
    ],
)
def test_what_cannot_be_compared(files, shapes, weights, tmp_path, before, after, words):
    shutil.copy(weights.with_name("shapes-yolo11n-seg.pt"), files / "segment.pt")
    (files / "broken.pt").write_bytes(b"not a checkpoint")
    data = [f"data={shapes}", f"project={tmp_path}"]
    if after == "segment.pt":
        from shapes import make_dataset

        data[0] = f"data={make_dataset(tmp_path / 'seg', 4, 4, 'segment')}"
    done = diff(files / before, files / after, *data)
    assert done.exit_code == 2, done.output
    assert words in " ".join(done.output.split())
    assert not (tmp_path / "diff").exists()
