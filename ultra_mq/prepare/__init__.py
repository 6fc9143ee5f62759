# SPDX-License-Identifier: AGPL-3.0-or-later
"""Weights and data to what can be quantized.

In: a checkpoint and a data YAML. Out: a ``PreparedModel`` with its layers and their flow, and ``Batches`` of images.
"""

from ultra_mq.prepare.annotations import match_images
from ultra_mq.prepare.data import (
    Batches,
    Data,
    ImageSize,
    choose,
    fingerprint_split,
    height_width,
    images_must_be_there,
    load_image,
    size_text,
)
from ultra_mq.prepare.datasets import load_data, load_images
from ultra_mq.prepare.device import gpu_index, torch_device
from ultra_mq.prepare.flow import Op, channels_of, gather_inputs, kind_of, observe_flow
from ultra_mq.prepare.groups import find_groups, find_links
from ultra_mq.prepare.model import TASKS, PreparedModel, load_model, prepare_model, uniform_formats
from ultra_mq.prepare.names import ANCHOR_EXTRAS, LAYER_OPS, layer_of
from ultra_mq.prepare.placement import JOINS, Placement, place_joins, shared_ranges, sites_of

__all__ = [
    "ANCHOR_EXTRAS",
    "JOINS",
    "LAYER_OPS",
    "TASKS",
    "Batches",
    "Data",
    "ImageSize",
    "Op",
    "Placement",
    "PreparedModel",
    "channels_of",
    "choose",
    "find_groups",
    "find_links",
    "fingerprint_split",
    "gather_inputs",
    "gpu_index",
    "height_width",
    "images_must_be_there",
    "kind_of",
    "layer_of",
    "load_data",
    "load_image",
    "load_images",
    "load_model",
    "match_images",
    "observe_flow",
    "place_joins",
    "prepare_model",
    "shared_ranges",
    "sites_of",
    "size_text",
    "torch_device",
    "uniform_formats",
]
