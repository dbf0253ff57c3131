from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from cutline.devices.machine.cores import usable_cores
from cutline.devices.profile import Compute, DeviceProfile
from cutline.edge.generation.energy import EnergyMeter, Reading


def told(meter: EnergyMeter, reading: Reading, *, estimated: bool) -> float:
    energy = meter.energy(reading)
    assert energy is not None
    assert energy.estimated is estimated
    return energy.joules


class Time:
    def __init__(self) -> None:
        self.now = 100.0
        self.worked = 7.0

    def pass_by(self, seconds: float, *, share: float) -> None:
        self.now += seconds
        self.worked += seconds * share * usable_cores()


def profile(idle: float | None, loaded: float | None) -> DeviceProfile:
    return DeviceProfile(
        name="a board",
        source="datasheet",
        date=datetime.date(2026, 1, 1),
        memory_bytes=1e9,
        memory_bandwidth=1e9,
        compute=Compute(fp32=1e9),
        idle_watts=idle,
        loaded_watts=loaded,
    )


@pytest.mark.parametrize(
    ("idle", "share", "joules"), [(2.0, 0.0, 4.0), (2.0, 1.0, 20.0), (2.0, 0.5, 12.0), (None, 0.5, 10.0)]
)
def test_an_estimate_from_idle_and_loaded_power(
    tmp_path: Path, idle: float | None, share: float, joules: float
) -> None:
    time = Time()
    meter = EnergyMeter(profile(idle, 10.0), root=tmp_path, clock=lambda: time.now, busy=lambda: time.worked)
    time.pass_by(5.0, share=1.0)  # before it
    with meter.reading() as reading:
        time.pass_by(2.0, share=share)
        assert told(meter, reading, estimated=True) == pytest.approx(joules)
    time.pass_by(5.0, share=1.0)  # after it
    assert told(meter, reading, estimated=True) == pytest.approx(joules)


def test_answers_at_the_same_time_share_what_is_spent(tmp_path: Path) -> None:
    time = Time()
    meter = EnergyMeter(profile(0.0, 10.0), root=tmp_path, clock=lambda: time.now, busy=lambda: time.worked)
    with meter.reading() as first:
        time.pass_by(1.0, share=1.0)
        with meter.reading() as second:
            time.pass_by(2.0, share=1.0)
        time.pass_by(1.0, share=1.0)
    assert first.joules == pytest.approx(30.0)
    assert second.joules == pytest.approx(10.0)


@pytest.mark.parametrize("known", [None, profile(1.0, None)])
def test_nothing_is_guessed(tmp_path: Path, known: DeviceProfile | None) -> None:
    meter = EnergyMeter(known, root=tmp_path)
    with meter.reading() as reading:
        pass
    assert meter.energy(reading) is None


def test_a_counter_comes_before_an_estimate(tmp_path: Path) -> None:
    zone = tmp_path / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0")
    (zone / "max_energy_range_uj").write_text("10000000")
    (zone / "energy_uj").write_text("9000000")
    meter = EnergyMeter(profile(1.0, 5.0), root=tmp_path)
    with meter.reading() as reading:
        (zone / "energy_uj").write_text("500000")  # it began again at 0
        assert told(meter, reading, estimated=False) == pytest.approx(1.5)


def test_the_mean_of_a_boards_power(tmp_path: Path) -> None:
    chip = tmp_path / "sys/class/hwmon/hwmon0"
    chip.mkdir(parents=True)
    for name, text in (("name", "ina3221"), ("in1_label", "VDD_IN"), ("in1_input", "5000"), ("curr1_input", "1000")):
        (chip / name).write_text(text)
    time = Time()
    meter = EnergyMeter(root=tmp_path, clock=lambda: time.now)
    with meter.reading() as reading:
        time.pass_by(2.0, share=0.0)
        (chip / "curr1_input").write_text("3000")
        assert told(meter, reading, estimated=False) == pytest.approx(20.0)
