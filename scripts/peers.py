# SPDX-License-Identifier: AGPL-3.0-or-later
"""Uniform INT8 of ultra-mq against ModelOpt's ONNX quantization, on the same calibration and evaluation images.

    python scripts/peers.py WEIGHTS data=DATA.yaml --output docs/results/peers.md

Peers: the settings of Ultralytics' own TensorRT 11 export (max, head outputs and DFL excluded), and ModelOpt's default
calibration (entropy) with the same exclusions.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnx

from ultra_mq.api import autoquant_recipe
from ultra_mq.backends.onnxruntime import OnnxRuntime
from ultra_mq.console import quiet
from ultra_mq.evaluate import compare, evaluate
from ultra_mq.export import export_onnx
from ultra_mq.files import write_text
from ultra_mq.plan import uniform_plan
from ultra_mq.session import open_session, quantize_model

EXCLUDED = [r".*\.2/Conv$", r".*/dfl/.*"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    recipe = autoquant_recipe(arguments.weights, 8, {}, arguments.overrides)
    session = open_session(recipe)
    images = session.calibration_batches(recipe.calibration.images)
    pixels = np.concatenate([batch["img"].cpu().numpy() for batch in images])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fp32 = export_onnx(session.model.module, folder / "fp32.onnx", recipe.imgsz).path
        files = {f"ModelOpt ONNX, {method}": peer(fp32, pixels, method) for method in ("max", "entropy")}
        module = quantize_model(session, uniform_plan(session.model, "int8"))
        files["ultra-mq, 8 bits"] = export_onnx(module, folder / "ours.onnx", recipe.imgsz).path
        reference = evaluate(OnnxRuntime(fp32), session.data, label="FP32")
        rows = [("FP32", reference.map50_95, 1.0)]
        for label, path in files.items():
            found = compare(evaluate(OnnxRuntime(path), session.data, label=label), reference.detections)
            rows.append((label, found.map50_95, found.agreement))
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


def peer(fp32: Path, pixels: np.ndarray, method: str) -> Path:
    """Quantize with ``modelopt.onnx.quantization`` and give back the metadata that it drops."""
    output = fp32.with_name(f"{method}.onnx")
    with quiet():
        from modelopt.onnx.quantization import quantize

        quantize(
            str(fp32),
            quantize_mode="int8",
            calibration_data={"images": pixels},
            calibration_method=method,
            calibration_eps=["cpu"],
            nodes_to_exclude=EXCLUDED,
            high_precision_dtype="fp32",
            output_path=str(output),
        )
    model = onnx.load(str(output))
    del model.metadata_props[:]
    model.metadata_props.extend(onnx.load(str(fp32)).metadata_props)
    onnx.save(model, str(output))
    return output


if __name__ == "__main__":
    main()
