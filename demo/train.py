# SPDX-License-Identifier: AGPL-3.0-or-later
"""Trains the checkpoints of the offline demo, ``demo/shapes-*.pt``, from scratch.

    python demo/train.py --device 0 --task segment

Took 2000 generated pictures, 80 epochs of the detector and 30 to 120 of the others: minutes on one GPU.
The detector is a YOLO11n; the networks of the other tasks have half its width, since they are to be small.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
import yaml
from shapes import CROP, SIZE, SUFFIXES, make_dataset
from ultralytics import YOLO
from ultralytics.utils import ROOT

HALF_WIDTH = [0.50, 0.125, 1024]
"""Depth, width and largest number of channels; YOLO11n has a width of 0.25."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a checkpoint of the offline demo.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--task", choices=SUFFIXES, default="detect")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    task = arguments.task
    output = arguments.output or checkpoint(task)
    imgsz = CROP if task == "classify" else SIZE
    with tempfile.TemporaryDirectory() as folder:
        data = make_dataset(Path(folder) / "shapes", arguments.pictures, 200, task)
        model = YOLO(network(task, Path(folder)), task=task)
        model.train(
            data=str(data), imgsz=imgsz, epochs=arguments.epochs, batch=64, device=arguments.device, amp=False,
            project=folder, name="train", plots=False, workers=8, cache="ram", seed=0, close_mosaic=20,
        )  # fmt: skip
        best = Path(folder) / "train" / "weights" / "best.pt"
        save_without_traces(best, output, task, "shapes.yaml" if task != "classify" else "shapes", imgsz)
    print(output)


def checkpoint(task: str) -> Path:
    """Where the checkpoint of a task lies."""
    return Path(__file__).with_name(f"shapes-yolo11n{SUFFIXES[task]}.pt")


def network(task: str, folder: Path) -> str:
    """YAML of the network of a task."""
    name = f"yolo11{SUFFIXES[task]}.yaml"
    if task == "detect":
        return "yolo11n.yaml"
    config = yaml.safe_load((ROOT / "cfg" / "models" / "11" / name).read_text())
    config |= {"scales": {"n": HALF_WIDTH}, "scale": "n"}
    if task == "pose":
        config["kpt_shape"] = [5, 3]
    (folder / name).write_text(yaml.safe_dump(config))
    return str(folder / name)


def save_without_traces(trained: Path, output: Path, task: str, data: str, imgsz: int) -> None:
    """Keep the weights and the settings that describe them; drop paths, dates and logs of the training machine."""
    stored = torch.load(trained, map_location="cpu", weights_only=False)
    kept = {
        key: value for key, value in stored.items() if key in ("model", "ema", "modelopt", "version", "license", "docs")
    }
    name = f"yolo11n{SUFFIXES[task]}.yaml"
    kept["train_args"] = {"task": task, "data": data, "imgsz": imgsz, "model": name}
    kept["model"].args = kept["train_args"]
    kept["model"].yaml["yaml_file"] = name
    torch.save(kept, output)


if __name__ == "__main__":
    main()
