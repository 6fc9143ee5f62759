# SPDX-License-Identifier: AGPL-3.0-or-later
"""The main job in one go: YOLO11n on COCO128 where it can be had, generated pictures otherwise.

python demo/run.py --task segment
"""

from __future__ import annotations

import argparse
import contextlib
import io
import subprocess
import sys
from pathlib import Path

from shapes import SUFFIXES, make_dataset

HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(description="Quantize a model and prove the result.")
    parser.add_argument("--task", choices=SUFFIXES, default="detect")
    task = parser.parse_args().task
    if task == "detect" and coco_is_reachable():
        what = "YOLO11n on the 128 images of COCO128, as downloaded by Ultralytics; about 7 minutes on two cores"
        arguments = ["--bits", "9", "yolo11n.pt", "data=coco128.yaml"]
    else:
        why = "yolo11n.pt and coco128 cannot be downloaded here, so this" if task == "detect" else "this"
        what = (
            f"{why} takes a YOLO11 that was trained on generated pictures of shapes (demo/train.py), and 64 of them; "
            f"about a minute on two cores"
        )
        data = make_dataset(HERE / "data" / f"shapes{SUFFIXES[task]}", train=64, val=64, task=task)
        weights = HERE / f"shapes-yolo11n{SUFFIXES[task]}.pt"
        arguments = ["--bits", "9", str(weights), f"data={data}", f"imgsz={96 if task == 'classify' else 320}"]
    print(
        f"Demo: {what}. It scores every layer, quantizes to 9 bits a weight, exports a Q/DQ ONNX, proves it with "
        f"Ultralytics' validator, and writes a report: report.html in runs/.\n",
        flush=True,
    )
    return subprocess.call([sys.executable, "-m", "ultra_mq", "autoquant", *arguments])


def coco_is_reachable() -> bool:
    """Whether Ultralytics can bring yolo11n.pt and coco128; it downloads them on the way."""
    from ultralytics import YOLO
    from ultralytics.data.utils import check_det_dataset
    from ultralytics.utils import ONLINE, SETTINGS
    from ultralytics.utils.downloads import attempt_download_asset

    if not ONLINE and not Path(SETTINGS["weights_dir"], "yolo11n.pt").exists() and not Path("yolo11n.pt").exists():
        return False
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            YOLO(attempt_download_asset("yolo11n.pt"))
            check_det_dataset("coco128.yaml")
    except Exception as error:
        print(f"Not reachable: {' '.join(str(error).split())[:120]}", flush=True)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
