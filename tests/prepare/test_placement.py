# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tests of where Q/DQ stand, on a hand-made flow and on YOLO11."""

import pytest

from ultra_mq.prepare.flow import Op, trace_flow
from ultra_mq.prepare.placement import place_joins, shared_ranges

# A C2f block: a conv splits into two halves; one goes through a residual bottleneck; all three join in a concat.
BLOCK = (
    Op("conv", "cv1", 0, (0,), (1,)),
    Op("view", "", 0, (1,), (2, 3)),
    Op("conv", "m.cv1", 0, (3,), (4,)),
    Op("other", "m.act", 0, (4,), (5,)),
    Op("add", "m", 0, (3, 5), (6,)),
    Op("cat", "", 0, (2, 3, 6), (7,)),
    Op("conv", "cv2", 0, (7,), (8,)),
)
ALL = dict.fromkeys(("cv1", "m.cv1", "cv2"), "int8")


def test_joins_before_a_quantized_layer_are_quantized():
    assert place_joins(BLOCK, ALL) == {
        "m.add0_quantizer0": "int8", "m.add0_quantizer1": "int8", ".cat0_quantizer": "int8",
    }  # fmt: skip


def test_a_layer_in_float_takes_the_joins_that_only_it_reads_with_it():
    assert place_joins(BLOCK, {"cv1": "int8", "m.cv1": "int8"}) == {}


def test_a_float_layer_inside_the_block_does_not_stop_the_joins():
    assert place_joins(BLOCK, {"cv2": "int8"}).keys() == place_joins(BLOCK, ALL).keys()


def test_a_join_whose_readers_disagree_stays_in_float():
    flow = (*BLOCK, Op("conv", "cv3", 0, (7,), (9,)))
    assert place_joins(flow, {**ALL, "cv3": "fp8"}) == {}
    assert set(place_joins(flow, {"cv2": "fp8", "cv3": "fp8"}).values()) == {"fp8"}


def test_what_a_concat_and_a_split_copy_shares_one_range():
    groups = shared_ranges(BLOCK, "runtime")
    shared = {"m.cv1", "m.add0_quantizer0", ".cat0_quantizer", "cv2"}
    assert frozenset(shared) in groups
    assert frozenset({"m.add0_quantizer1"}) in groups  # the other operand of an add has a range of its own
    assert frozenset({"cv1"}) in groups


def test_without_joins_every_layer_has_a_range_of_its_own():
    assert shared_ranges(BLOCK, "torch") == tuple(frozenset({name}) for name in ("cv1", "m.cv1", "cv2"))


def test_a_pool_that_runs_several_times_has_one_quantizer():
    flow = (
        Op("pool", "m", 0, (0,), (1,), builtin=True),
        Op("other", "act", 0, (1,), (2,)),
        Op("pool", "m", 0, (2,), (3,), builtin=True),
    )
    assert shared_ranges(flow, "runtime") == (frozenset({"m.input_quantizer"}),)


@pytest.fixture(scope="module")
def yolo11(model):
    return trace_flow(model.module)


def test_yolo11_joins_except_those_of_the_head(model, yolo11):
    joins = place_joins(yolo11, {layer.name: "int8" for layer in model.quantizable})
    kinds = [name.rpartition(".")[2].rstrip("01") for name in joins]
    # 12 residual adds and 2 in attention, two operands each; 17 concats; SPPF's pool; two upsamplings.
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "add0_quantizer": 26, "add1_quantizer": 2, "cat0_quantizer": 17, "input_quantizer": 1, "resize0_quantizer": 2,
    }  # fmt: skip
    assert not any(name.startswith("model.23") for name in joins)


def test_the_ranges_of_the_neck_meet_in_its_concats(yolo11):
    groups = {site: group for group in shared_ranges(yolo11, "runtime") for site in group}
    # model.12 joins the upsampled model.10 with model.6, and model.21 joins model.10 with model.20.
    assert groups["model.12.cat0_quantizer"] is groups["model.21.cat0_quantizer"]
    assert groups["model.12.cat0_quantizer"] is groups["model.11.resize0_quantizer"]
    assert groups["model.12.cat0_quantizer"] is groups["model.13.cv1.conv"]
    assert groups["model.2.cat0_quantizer"] is not groups["model.12.cat0_quantizer"]
