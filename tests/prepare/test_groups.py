# SPDX-License-Identifier: AGPL-3.0-or-later
import pytest
from ultralytics import YOLO

from ultra_mq.prepare.flow import trace_flow
from ultra_mq.prepare.groups import find_groups, find_links
from ultra_mq.prepare.model import prepare_model


def names(model):
    return [layer.name for layer in model.quantizable]


def group_of(groups, layer):
    return next(set(group) for group in groups if layer in group)


@pytest.fixture(scope="module")
def flow(model):
    return trace_flow(model.module)


def test_every_layer_is_in_one_group(model, flow):
    groups = find_groups(flow, names(model))
    assert sorted(layer for group in groups for layer in group) == sorted(names(model))


def test_both_inputs_of_a_residual_add_and_the_branches_of_a_concat(model, flow):
    groups = find_groups(flow, names(model))
    # Bottleneck: x + cv2(cv1(x)), where x is half of what cv1 of the block makes; all meet in the block's concat.
    assert group_of(groups, "model.2.cv1.conv") == {"model.2.cv1.conv", "model.2.m.0.cv2.conv"}
    assert group_of(groups, "model.2.m.0.cv1.conv") == {"model.2.m.0.cv1.conv"}


def test_readers_of_one_tensor(model, flow):
    groups = find_groups(flow, names(model))
    assert group_of(groups, "model.23.cv2.2.0.conv") == {"model.23.cv2.2.0.conv", "model.23.cv3.2.0.0.conv"}
    assert group_of(groups, "model.10.m.0.attn.qkv.conv") == {"model.10.m.0.attn.qkv.conv"}


@pytest.mark.parametrize(
    ("weights", "layers", "groups"), [("yolov8n", 57, 38), ("yolo12n", 113, 70), ("yolo26n", 96, 59)]
)
def test_other_families(weights, layers, groups):
    model = prepare_model(YOLO(f"{weights}.yaml"))
    found = find_groups(trace_flow(model.module), names(model))
    assert (len(names(model)), len(found)) == (layers, groups)


def test_a_layer_that_is_not_decided_on_binds_nothing(flow):
    assert find_groups(flow, ["model.2.cv1.conv", "model.3.conv"]) == (("model.2.cv1.conv",), ("model.3.conv",))


def test_links_pass_through_joins_and_activations(model, flow):
    links = find_links(flow, names(model))
    assert links["model.0.conv"] == ("model.1.conv",)
    assert links["model.4.cv2.conv"] == ("model.5.conv", "model.16.cv1.conv")  # the neck reads it in a concat
    assert "model.23.cv2.0.1.conv" not in links  # its reader is kept in float
