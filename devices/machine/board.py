"""Which board this is, and whether its supply and its cooling are enough.

What tools print is read by functions that take text, as in `cutline.devices.machine.power`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from cutline.devices.machine.power import Sensors

# What a device tree calls a board, and the profile of it that comes with Cutline. Sizes of memory share one name.
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
    """A machine by its own name, None where it has none; `profile` is the known board's, if it is one."""

    model: str | None
    profile: str | None


class BoardHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Power and heat under load; None where no sensor says so.

    `under_volted`: the supply gives too little now. The two `..._before` say that it happened since the start.
    `power_mode` is the name of the budget of power that a Jetson keeps to.
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
    """The board by its device tree, a PC by what its maker wrote into it. `root` is where the files are looked for."""
    for files in (["proc/device-tree/model"], [f"sys/class/dmi/id/{part}" for part in ("sys_vendor", "product_name")]):
        words = [_line(root / file) for file in files]
        if named := " ".join(word for word in words if word):
            return Board(model=named, profile=profile_of(named))
    return Board(model=None, profile=None)


def profile_of(model: str) -> str | None:
    """The profile that comes with Cutline for a board of this name."""
    return next((profile for pattern, profile in _BOARDS if re.search(pattern, model)), None)


def pi_troubles(text: str) -> tuple[bool, bool, bool] | None:
    """Of `vcgencmd get_throttled`: under-voltage now; since the start under-voltage, and a clock held back."""
    found = re.search(r"throttled=0x([0-9a-fA-F]+)", text)
    if found is None:
        return None
    bits = int(found[1], 16)
    return bool(bits & _UNDER_VOLTED), bool(bits & _UNDER_VOLTED_BEFORE), bool(bits & _HELD_BACK_BEFORE)


def jetson_power_mode(text: str) -> str | None:
    """The name in `nvpmodel -q`: `NV Power Mode: 15W`."""
    found = re.search(r"NV Power Mode: *(\S+)", text)
    return found[1] if found else None


def read_health(sensors: Sensors, work: Callable[[], object], *, seconds: float) -> BoardHealth:
    """What the sensors say while `work` is done again and again: an idle machine's low clock says nothing."""
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
    """A file's text on one line; a device tree ends its own with a zero byte."""
    try:
        return " ".join(file.read_bytes().replace(b"\0", b" ").decode(errors="replace").split())
    except OSError:
        return ""
