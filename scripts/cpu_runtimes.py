# SPDX-License-Identifier: AGPL-3.0-or-later
"""Uniform INT8 on ONNX Runtime and OpenVINO, ours beside NNCF's: what the CPU computes, and how fast.

    python scripts/cpu_runtimes.py WEIGHTS data=DATA.yaml --output table.md
    ONEDNN_MAX_CPU_ISA=AVX2 python scripts/cpu_runtimes.py WEIGHTS data=DATA.yaml --output table.md

With ``ONEDNN_MAX_CPU_ISA`` OpenVINO takes the instructions of an older CPU. Needs ``pip install nncf`` beside
``ultra-mq[openvino]``. NNCF quantizes as Ultralytics' OpenVINO export does, on the same calibration images.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from arguments import make_parser

from ultra_mq.core import BackendError, write_text
from ultra_mq.jobs import autoquant_recipe
from ultra_mq.measure import Accuracy, compare, evaluate, time_in_turns
from ultra_mq.plan import uniform_plan
from ultra_mq.runtimes import OnnxRuntime, open_file
from ultra_mq.runtimes.openvino import OpenVino
from ultra_mq.session import Artefacts, Session, float_artefacts, open_session


class Compiled(OpenVino):
    """A model that OpenVINO runs whatever it makes of it: an IR, or a graph that our backend refuses.

    Args:
        model: ``.xml`` or ``.onnx`` file.
        onnx: ONNX file with the metadata.
        threads: Threads of one inference.
    """

    def __init__(self, model: Path, onnx: Path, threads: int | None = None) -> None:
        super().__init__(onnx, threads)
        self.model = self.core.compile_model(str(model), "CPU", self.settings)
        self.request = self.model.create_infer_request()


def main() -> None:
    arguments = make_parser(__doc__).parse_args()

    def session_for(runtime: str) -> Session:
        return open_session(autoquant_recipe(arguments.weights, {"bits": 8}, {"runtime": runtime}, arguments.overrides))

    session = session_for("openvino")
    fp32 = float_artefacts(session).graph
    ours = Artefacts(session, uniform_plan(session.model, "int8")).graph
    signed_session = session_for("onnxruntime")
    signed = Artefacts(signed_session, uniform_plan(session.model, "int8")).graph
    with tempfile.TemporaryDirectory() as name:
        peer = quantize_by_nncf(session, fp32, Path(name) / "nncf.xml")
        opened: dict[str, Any] = {
            "FP32, ONNX Runtime": lambda threads: OnnxRuntime(fp32, threads),
            "FP32, OpenVINO": lambda threads: OpenVino(fp32, threads),
            "ours, signed, ONNX Runtime": lambda threads: OnnxRuntime(signed, threads),
            "ours, signed, OpenVINO (refused by us)": lambda threads: Compiled(signed, fp32, threads),
            "ours, for OpenVINO, ONNX Runtime": lambda threads: OnnxRuntime(ours, threads),
            "ours, for OpenVINO, OpenVINO": lambda threads: OpenVino(ours, threads),
            "NNCF, OpenVINO": lambda threads: Compiled(peer, fp32, threads),
        }
        accuracy: dict[str, Accuracy] = {}
        for label, start in opened.items():
            with closing(start(None)) as backend:
                accuracy[label] = evaluate(backend, session.data, label=label, table=False)
        reference = accuracy["FP32, ONNX Runtime"].predictions
        timed = {label: start(1) for label, start in opened.items()}
        bench = time_in_turns(timed, 5, 10, "FP32, OpenVINO")
    try:
        open_file(signed, runtime="openvino").close()
        refusal = "is taken"
    except BackendError:
        refusal = "is refused"
    instructions = os.environ.get("ONEDNN_MAX_CPU_ISA") or "all that the CPU has"
    lines = [
        f"Instructions: {instructions}. The signed graph {refusal} by `--runtime openvino`.",
        "",
        "| model | mAP50-95 | agreement with FP32 | p50 ms, 1 thread | speed-up over FP32 on OpenVINO, 95 % |",
        "|---|---|---|---|---|",
    ]
    for label, found in accuracy.items():
        latency = bench.latencies[label]
        low, high = latency.speedup_interval or (1.0, 1.0)
        agreement = compare(found, reference).agreement
        main_metric = "-" if found.main is None else f"{100 * found.main:.2f}"
        lines.append(f"| {label} | {main_metric} | {agreement:.3f} | {latency.p50_ms:.1f} | {low:.2f} to {high:.2f} |")
    write_text(arguments.output, "\n".join(lines) + "\n")


def quantize_by_nncf(session: Session, fp32: Path, path: Path) -> Path:
    """NNCF's post-training quantization with the settings of Ultralytics' OpenVINO export."""
    import nncf
    import openvino

    head = f"model.{len(session.model.module.model) - 1}"  # type: ignore[arg-type]
    patterns = [f".*{head}/.*/{kind}*" for kind in ("Add", "Sub", "Mul", "Div")] + [f".*{head}\\.dfl.*"]
    scope = nncf.IgnoredScope(patterns=patterns, types=["Sigmoid"], validate=False)
    batches = list(session.calibration_batches(session.recipe.calibration.images))
    images = [image[None] for batch in batches for image in batch["img"].cpu().numpy()]
    model = nncf.quantize(
        openvino.Core().read_model(str(fp32)),
        nncf.Dataset(images),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(images),
        ignored_scope=scope,
    )
    openvino.save_model(model, str(path))
    return path


if __name__ == "__main__":
    main()
