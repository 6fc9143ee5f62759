# SPDX-License-Identifier: AGPL-3.0-or-later
"""Uniform INT8 of ultra-mq against ModelOpt's ONNX quantization, on the same calibration and evaluation images.

    python scripts/peers.py WEIGHTS data=DATA.yaml --output docs/results/peers.md

Peers: the settings of Ultralytics' own TensorRT 11 export (max, head outputs and DFL excluded), and ModelOpt's default
calibration (entropy) with the same exclusions.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import get_args

import numpy as np
from arguments import make_parser

from ultra_mq.core import write_text
from ultra_mq.graph import PtqMethod, PtqSettings, export_onnx, ptq
from ultra_mq.jobs import autoquant_recipe
from ultra_mq.measure import compare, evaluate
from ultra_mq.plan import uniform_plan
from ultra_mq.runtimes import OnnxRuntime
from ultra_mq.session import Artefacts, open_session


def main() -> None:
    arguments = make_parser(__doc__).parse_args()
    recipe = autoquant_recipe(arguments.weights, {"bits": 8}, {}, arguments.overrides)
    session = open_session(recipe)
    images = session.calibration_batches(recipe.calibration.images)
    pixels = np.concatenate([batch["img"].cpu().numpy() for batch in images])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fp32 = export_onnx(session.model.module, folder / "fp32.onnx", session.recipe.size).path
        methods: tuple[PtqMethod, ...] = get_args(PtqMethod)
        files = {
            f"ModelOpt ONNX, {method}": ptq(fp32, folder / f"{method}.onnx", pixels, PtqSettings(method=method)).path
            for method in methods
        }
        module = Artefacts(session, uniform_plan(session.model, "int8")).module()
        files["ultra-mq, 8 bits"] = export_onnx(module, folder / "ours.onnx", session.recipe.size).path
        reference = evaluate(OnnxRuntime(fp32), session.data, label="FP32")
        rows = [("FP32", reference.main, 1.0)]
        for label, path in files.items():
            found = compare(evaluate(OnnxRuntime(path), session.data, label=label), reference.predictions)
            rows.append((label, found.main, found.agreement))
    lines = [
        "# Uniform INT8 against ModelOpt's ONNX quantization",
        "",
        f"{reference.images} evaluation images, the same {len(pixels)} calibration images, ONNX Runtime on CPU.",
        "Both peers leave the head's output convolutions and DFL in float, as Ultralytics' export does.",
        "",
        "| model | mAP50-95 | agreement with FP32 |",
        "|---|---|---|",
        *(f"| {label} | {100 * (map50_95 or 0):.2f} | {agreement:.3f} |" for label, map50_95, agreement in rows),
    ]
    write_text(arguments.output, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
