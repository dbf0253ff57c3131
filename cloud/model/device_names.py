"""Devices as options name them; read without torch, whose import takes its time."""

from __future__ import annotations

import re

from cutline.errors import InputError


def check_name(device: str) -> None:
    """That `device` is a name: cpu, cuda, cuda:1, ... Raises InputError. Whether it is here, torch knows."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise InputError(f"--device {device} is no device; give cpu, cuda, or one of several as cuda:0, cuda:1, ...")


def device_of(device: str, rank: int) -> str:
    """Which device a rank has, of all of a kind. Raises InputError where `device` is one of several."""
    if device == "cpu":
        return device
    if device != "cuda":
        raise InputError(f"--device {device} is one device; with --tensor-parallel give cuda or cpu")
    return f"cuda:{rank}"
