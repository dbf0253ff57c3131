"""Identifies the board, and checks its power supply and cooling under load.

The output of tools is parsed by functions that take text, as in `cutline.devices.machine.power`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from cutline.devices.machine.power import Sensors

# Boards' names in the device tree, and their profiles. Boards with different memory have the same name.
_BOARDS = (
    (r"Raspberry Pi (5|500|Compute Module 5)\b", "raspberry-pi-5"),
    (r"Raspberry Pi (4|400|Compute Module 4)\b", "raspberry-pi-4"),
    (r"Jetson AGX Thor|Jetson Thor", "jetson-thor-t5000"),
    (r"AGX Orin", "jetson-agx-orin-64gb"),
    (r"Orin NX", "jetson-orin-nx-16gb"),
    (r"Orin Nano", "jetson-orin-nano-8gb"),
)
_UNDER_VOLTED, _UNDER_VOLTED_BEFORE, _HELD_BACK_BEFORE = 1, 1 << 16, 0b111 << 17


class Board(msgspec.Struct, frozen=True, kw_only=True):
    """A machine's model name, None if it has none, and the name of the `profile` of a known board."""

    model: str | None
    profile: str | None


class BoardHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Power and temperature under load; None without a sensor.

    `under_volted` says that the supply's voltage is too low now. The two `..._before` say that it happened since boot.
    `power_mode` is the name of a Jetson's power budget.
    """

    watts: float | None = None
    power_source: str | None = None
    celsius: float | None = None
    throttled: bool | None = None
    under_volted: bool | None = None
    throttled_before: bool | None = None
    under_volted_before: bool | None = None
    power_mode: str | None = None


def read_board(*, root: Path = Path("/")) -> Board:
    """The board, from its device tree or, for a PC, from DMI. `root` is the root of the file system."""
    for files in (["proc/device-tree/model"], [f"sys/class/dmi/id/{part}" for part in ("sys_vendor", "product_name")]):
        lines = [_line(root / file) for file in files]
        if model := " ".join(line for line in lines if line):
            return Board(model=model, profile=profile_of(model))
    return Board(model=None, profile=None)


def profile_of(model: str) -> str | None:
    """The name of the shipped profile for a board of this model, None if there is none."""
    return next((profile for pattern, profile in _BOARDS if re.search(pattern, model)), None)


def pi_troubles(text: str) -> tuple[bool, bool, bool] | None:
    """From `vcgencmd get_throttled`: under-voltage now, under-voltage since boot, and throttling since boot."""
    found = re.search(r"throttled=0x([0-9a-fA-F]+)", text)
    if found is None:
        return None
    bits = int(found[1], 16)
    return bool(bits & _UNDER_VOLTED), bool(bits & _UNDER_VOLTED_BEFORE), bool(bits & _HELD_BACK_BEFORE)


def jetson_power_mode(text: str) -> str | None:
    """The power mode in the output of `nvpmodel -q`, such as `NV Power Mode: 15W`."""
    found = re.search(r"NV Power Mode: *(\S+)", text)
    return found[1] if found else None


def read_health(sensors: Sensors, work: Callable[[], object], *, seconds: float) -> BoardHealth:
    """The sensors' readings while `work` is repeated for `seconds`: an idle machine lowers its clock anyway."""
    end = time.monotonic() + seconds
    with sensors.watched() as load:
        while time.monotonic() < end:
            work()
    now, under_volted, throttled = pi_troubles(sensors.run(["vcgencmd", "get_throttled"]) or "") or (None, None, None)
    return BoardHealth(
        watts=load.watts,
        power_source=sensors.power_source(),
        celsius=load.celsius,
        throttled=load.throttled,
        under_volted=now,
        throttled_before=throttled,
        under_volted_before=under_volted,
        power_mode=jetson_power_mode(sensors.run(["nvpmodel", "-q"]) or ""),
    )


def _line(file: Path) -> str:
    """A file's text on one line, without the zero byte at the end of device tree files; "" if it cannot be read."""
    try:
        return " ".join(file.read_bytes().replace(b"\0", b" ").decode(errors="replace").split())
    except OSError:
        return ""
