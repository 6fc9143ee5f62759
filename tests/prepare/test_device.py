# SPDX-License-Identifier: AGPL-3.0-or-later
import pytest
import torch

from ultra_mq.core.errors import BackendError
from ultra_mq.prepare.device import gpu_index, torch_device


@pytest.mark.parametrize(
    ("device", "gpus", "expected"),
    [("auto", 0, "cpu"), ("auto", 2, "cuda:0"), ("cuda", 1, "cuda:0"), ("1", 2, "cuda:1"), ("cuda:1", 2, "cuda:1"),
     ("cpu", 2, "cpu")],
)  # fmt: skip
def test_ultralytics_words_for_devices(monkeypatch, device, gpus, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert torch_device(device) == expected


@pytest.mark.parametrize("device", ["0", "0,1", "cuda", "cuda:7", "gpu"])
def test_a_device_that_is_not_there(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(BackendError, match=f"device={device} is not on this machine.*device=auto"):
        torch_device(device)


def test_the_number_of_a_gpu():
    assert [gpu_index(device) for device in ("auto", "cpu", "1", "cuda:3")] == [0, 0, 1, 3]
