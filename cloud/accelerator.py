"""The devices that torch has here, for the commands of a worker."""

from __future__ import annotations

import torch

from cutline.devices.memory import measure_memory
from cutline.errors import InputError


def free_memory(device: str) -> int:
    """Bytes that can be had on `device` now."""
    free: int = torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else measure_memory().free
    return free


def check_device(device: str) -> None:
    """That torch can run on `device`: cpu, cuda, cuda:1, ... Raises InputError, naming those that it can."""
    cards = torch.cuda.device_count()
    available = ["cpu", *(["cuda"] if cards else []), *(f"cuda:{card}" for card in range(cards))]
    if device not in available:
        raise InputError(f"--device {device} is not here; choose {', '.join(available)}")
