# SPDX-License-Identifier: AGPL-3.0-or-later
"""Plans with structure, on a network of five stages."""

from ultra_mq.plan.structure import probe_choices, structural_choices

UNIFORM = {f"model.{stage}.{layer}": "int8" for stage in range(5) for layer in ("cv1.conv", "cv2.conv")}


def floats(choice):
    return sorted({layer.split(".")[1] for layer in UNIFORM if layer not in choice})


def test_every_way_to_leave_whole_stages_in_float():
    found = structural_choices(UNIFORM)
    assert floats(found["float to model.1"]) == ["0", "1"]
    assert floats(found["float from model.3"]) == ["3", "4"]
    assert floats(found["float model.2"]) == ["2"]
    assert floats(found["float to model.0 and from model.4"]) == ["0", "4"]
    # 4 first, 4 last, 3 alone, and pairs of a head and a tail that leave a stage between them.
    assert len(found) == 4 + 4 + 3 + 6
    assert all(choice for choice in found.values())


def test_the_first_probes_show_every_layer_in_float():
    first, second = probe_choices(UNIFORM, 2).values()
    assert not set(first) & set(second)
    assert set(first) | set(second) == set(UNIFORM)


def test_as_many_probes_as_asked_for_and_there_are():
    assert probe_choices(UNIFORM, 0) == {}
    assert len(probe_choices(UNIFORM, 4)) == 4
    assert len({tuple(choice) for choice in probe_choices(UNIFORM, 10).values()}) == len(probe_choices(UNIFORM, 10))


def test_a_network_of_one_stage_has_no_structure():
    assert structural_choices({"model.0.conv": "int8"}) == {}
    assert probe_choices({"model.0.conv": "int8"}, 4) == {}
