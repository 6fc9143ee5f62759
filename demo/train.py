# SPDX-License-Identifier: AGPL-3.0-or-later
"""Trains the checkpoint of the offline demo, ``demo/shapes-yolo11n.pt``, from scratch.

    python demo/train.py --device 0

Took 2000 generated pictures and 80 epochs; a few minutes on one GPU.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from shapes import SIZE, make_dataset
from ultralytics import YOLO

CHECKPOINT = Path(__file__).with_name("shapes-yolo11n.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the checkpoint of the offline demo.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--output", type=Path, default=CHECKPOINT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = make_dataset(Path(folder) / "shapes", arguments.pictures, 200)
        model = YOLO("yolo11n.yaml")
        model.train(
            data=str(data), imgsz=SIZE, epochs=arguments.epochs, batch=64, device=arguments.device, amp=False,
            project=folder, name="train", plots=False, workers=8, cache="ram", seed=0, close_mosaic=20,
        )  # fmt: skip
        save_without_traces(Path(folder) / "train" / "weights" / "best.pt", arguments.output)
    print(arguments.output)


def save_without_traces(trained: Path, output: Path) -> None:
    """Keep the weights and the settings that describe them; drop paths, dates and logs of the training machine."""
    checkpoint = torch.load(trained, map_location="cpu", weights_only=False)
    kept = {
        key: value
        for key, value in checkpoint.items()
        if key in ("model", "ema", "modelopt", "version", "license", "docs")
    }
    kept["train_args"] = {"task": "detect", "data": "shapes.yaml", "imgsz": SIZE, "model": "yolo11n.yaml"}
    kept["model"].args = kept["train_args"]
    torch.save(kept, output)


if __name__ == "__main__":
    main()
