# SPDX-License-Identifier: AGPL-3.0-or-later
"""ONNX node names and module paths: the exporter writes one into the other."""

from __future__ import annotations

ANCHOR_EXTRAS = ("mask_coefficient", "kpts", "angle")
"""What heads of Ultralytics give for each anchor beside boxes and classes, by the names of their raw outputs."""

LAYER_OPS = ("Conv", "Gemm", "MatMul")
"""Operators of a layer: they have a weight, or multiply two tensors."""


def layer_of(node_name: str) -> str:
    """Module path of an ONNX node: ``/model.2/cv1/conv/Conv`` is ``model.2.cv1.conv``.

    The exporter repeats a container's path inside its children (``/model.23/cv2.0/cv2.0.0/conv``); the longest
    part wins there.
    """
    parts = node_name.strip("/").split("/")[:-1]
    path: list[str] = []
    for part in parts:
        if path and part.startswith(f"{path[-1]}."):
            path[-1] = part
        else:
            path.append(part)
    return ".".join(path)
