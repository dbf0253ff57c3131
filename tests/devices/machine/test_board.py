from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from cutline.devices.machine.board import (
    Board,
    BoardHealth,
    jetson_power_mode,
    pi_troubles,
    profile_of,
    read_board,
    read_health,
)
from cutline.devices.machine.power import Sensors
from cutline.devices.profile import profile_names


@pytest.mark.parametrize(
    ("model", "profile"),
    [
        ("Raspberry Pi 5 Model B Rev 1.0", "raspberry-pi-5"),
        ("Raspberry Pi Compute Module 5 Rev 1.0", "raspberry-pi-5"),
        ("Raspberry Pi 4 Model B Rev 1.4", "raspberry-pi-4"),
        ("Raspberry Pi 400 Rev 1.0", "raspberry-pi-4"),
        ("Raspberry Pi 3 Model B Plus Rev 1.3", None),
        ("Raspberry Pi Zero 2 W Rev 1.0", None),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "jetson-orin-nano-8gb"),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "jetson-orin-nx-16gb"),
        ("NVIDIA Jetson AGX Orin Developer Kit", "jetson-agx-orin-64gb"),
        ("NVIDIA Jetson AGX Thor Developer Kit", "jetson-thor-t5000"),
        ("LENOVO 20XW", None),
    ],
)
def test_boards_by_what_their_device_tree_says(model: str, profile: str | None) -> None:
    assert profile_of(model) == profile
    assert profile is None or profile in profile_names()


def test_a_device_tree_ends_its_name_with_a_zero_byte(tmp_path: Path) -> None:
    file = tmp_path / "proc/device-tree/model"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"Raspberry Pi 5 Model B Rev 1.0\0")
    assert read_board(root=tmp_path) == Board(model="Raspberry Pi 5 Model B Rev 1.0", profile="raspberry-pi-5")


def test_a_pc_has_its_makers_name_for_it(tmp_path: Path) -> None:
    assert read_board(root=tmp_path) == Board(model=None, profile=None)
    folder = tmp_path / "sys/class/dmi/id"
    folder.mkdir(parents=True)
    (folder / "sys_vendor").write_text("LENOVO\n")
    (folder / "product_name").write_text("20XW\n")
    assert read_board(root=tmp_path).model == "LENOVO 20XW"


@pytest.mark.parametrize(
    ("said", "troubles"),
    [
        ("throttled=0x0\n", (False, False, False)),
        ("throttled=0x50005\n", (True, True, True)),
        ("throttled=0x10000\n", (False, True, False)),
        ("throttled=0x80000\n", (False, False, True)),
        ("VCHI initialization failed", None),
    ],
)
def test_what_a_pi_remembers(said: str, troubles: tuple[bool, bool, bool] | None) -> None:
    assert pi_troubles(said) == troubles


def test_the_power_mode_of_a_jetson() -> None:
    assert jetson_power_mode("NV Fan Mode:quiet\nNV Power Mode: 15W\n0\n") == "15W"
    assert jetson_power_mode("nvpmodel: not found") is None


def test_health_is_read_under_load(tmp_path: Path) -> None:
    said = {"get_throttled": "throttled=0x10002\n", "measure_temp": "temp=71.0'C\n"}
    worked = 0

    def run(command: Sequence[str]) -> str | None:
        return said.get(command[-1])

    def work() -> None:
        nonlocal worked
        worked += 1

    health = read_health(Sensors(root=tmp_path, run=run, every=0.005), work, seconds=1.0)
    assert worked > 1
    assert health == BoardHealth(
        celsius=71.0, throttled=True, under_volted=False, under_volted_before=True, throttled_before=False
    )


def test_a_machine_without_sensors_says_nothing(tmp_path: Path) -> None:
    sensors = Sensors(root=tmp_path, run=lambda command: None, every=0.005)
    assert read_health(sensors, lambda: None, seconds=0.01) == BoardHealth()
