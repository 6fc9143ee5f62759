# SPDX-License-Identifier: AGPL-3.0-or-later
"""The main job in one go: YOLO11n on COCO128 where it can be had, generated pictures otherwise."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    if coco_is_reachable():
        print("Demo: yolo11n.pt on coco128.yaml, as downloaded by Ultralytics.", flush=True)
        arguments = ["--bits", "9", "yolo11n.pt", "data=coco128.yaml"]
    else:
        from shapes import make_dataset

        print(
            "Demo: yolo11n.pt and coco128 cannot be downloaded here, so this runs a YOLO11n that was trained on "
            "generated pictures of shapes (demo/train.py).",
            flush=True,
        )
        data = make_dataset(HERE / "data" / "shapes", train=64, val=64)
        arguments = ["--bits", "9", str(HERE / "shapes-yolo11n.pt"), f"data={data}", "imgsz=320"]
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
