from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cutline.devices.machine.power import (
    GpuReading,
    Sensors,
    clock_share,
    gpu_reading,
    ina3221_watts,
    joules_between,
    pi_celsius,
    pi_throttled,
    pmic_watts,
    rapl_joules,
    throttle_events,
    zone_celsius,
)

# Four of the lines that a Raspberry Pi 5 prints, and one whose rail has no current.
PMIC = """ 3V7_WL_SW_A current(0)=0.09759470A
   VDD_CORE_A current(7)=0.86900000A
 3V7_WL_SW_V volt(8)=3.68972200V
   VDD_CORE_V volt(15)=0.72031290V
      EXT5V_V volt(24)=5.15398000V
"""


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


def tools(answers: dict[str, str]) -> Callable[[Sequence[str]], str | None]:
    """Tools that answer to a word of the command."""

    def run(command: Sequence[str]) -> str | None:
        return next((text for word, text in answers.items() if any(word in part for part in command)), None)

    return run


def test_the_power_of_a_pi_is_the_sum_over_its_rails() -> None:
    assert pmic_watts(PMIC) == pytest.approx(0.0975947 * 3.689722 + 0.869 * 0.7203129)
    assert pmic_watts('error=1 error_msg="Command not registered"') is None
    assert pmic_watts("") is None


def test_the_temperature_of_a_pi() -> None:
    assert pi_celsius("temp=48.3'C\n") == 48.3
    assert pi_celsius("VCHI initialization failed") is None


@pytest.mark.parametrize(
    ("said", "held"),
    [
        ("throttled=0x0\n", False),
        ("throttled=0x50000\n", False),  # it was, since the start, but is not now
        ("throttled=0x50005\n", True),  # under-voltage and throttled
        ("throttled=0x2\n", True),  # frequency capped
        ("throttled=0x8\n", True),  # soft temperature limit
        ("throttled=0x1\n", False),  # under-voltage alone
        ("", None),
    ],
)
def test_whether_a_pi_holds_its_clock_back(said: str, held: bool | None) -> None:
    assert pi_throttled(said) is held


@pytest.mark.parametrize(
    ("line", "reading"),
    [
        ("71.53, 41, 0x0000000000000001\n", GpuReading(71.53, 41.0, False)),  # idle
        ("349.90, 83, 0x0000000000000024\n", GpuReading(349.9, 83.0, True)),  # power cap, heat
        ("12.1, 40, 0x0000000000000040\n", GpuReading(12.1, 40.0, True)),
        ("[N/A], 41, [Not Supported]\n", GpuReading(None, 41.0, None)),
        ("", GpuReading(None, None, None)),
        ("No devices were found", GpuReading(None, None, None)),
    ],
)
def test_a_line_of_nvidia_smi(line: str, reading: GpuReading) -> None:
    assert gpu_reading(line) == reading


ORIN_NANO = {
    "sys/class/hwmon/hwmon0/name": "tmp451",
    "sys/class/hwmon/hwmon1/name": "ina3221",
    "sys/class/hwmon/hwmon1/in1_label": "VDD_IN",
    "sys/class/hwmon/hwmon1/in1_input": "5072",
    "sys/class/hwmon/hwmon1/curr1_input": "1000",
    "sys/class/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV",
    "sys/class/hwmon/hwmon1/in2_input": "5064",
    "sys/class/hwmon/hwmon1/curr2_input": "200",
    "sys/class/hwmon/hwmon1/in7_label": "sum of shunt voltages",
    "sys/class/hwmon/hwmon1/in7_input": "9",
}
AGX_ORIN = {
    "sys/class/hwmon/hwmon1/name": "ina3221",
    "sys/class/hwmon/hwmon1/in1_label": "VDD_GPU_SOC",
    "sys/class/hwmon/hwmon1/in1_input": "20000",
    "sys/class/hwmon/hwmon1/curr1_input": "300",
    "sys/class/hwmon/hwmon1/in2_label": "VDD_CPU_CV",
    "sys/class/hwmon/hwmon1/in2_input": "20000",
    "sys/class/hwmon/hwmon1/curr2_input": "100",
    "sys/class/hwmon/hwmon2/name": "ina3221",
    "sys/class/hwmon/hwmon2/in1_label": "NC",
    "sys/class/hwmon/hwmon2/in1_input": "20000",
    "sys/class/hwmon/hwmon2/curr1_input": "1000",
}


def test_a_jetson_that_measures_its_input_counts_nothing_twice(tmp_path: Path) -> None:
    assert ina3221_watts(tree(tmp_path, ORIN_NANO)) == pytest.approx(5.072)


def test_a_jetson_without_a_rail_for_all_is_the_sum_of_its_rails(tmp_path: Path) -> None:
    assert ina3221_watts(tree(tmp_path, AGX_ORIN)) == pytest.approx(8.0)


def test_a_machine_without_that_chip_has_no_such_power(tmp_path: Path) -> None:
    assert ina3221_watts(tree(tmp_path, {"sys/class/hwmon/hwmon0/name": "coretemp"})) is None


RAPL = {
    "sys/class/powercap/intel-rapl:0/name": "package-0",
    "sys/class/powercap/intel-rapl:0/energy_uj": "3000000",
    "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143000000",
    "sys/class/powercap/intel-rapl:0:0/name": "core",
    "sys/class/powercap/intel-rapl:0:0/energy_uj": "9000000",
    "sys/class/powercap/intel-rapl:0:0/max_energy_range_uj": "262143000000",
    "sys/class/powercap/intel-rapl:1/name": "package-1",
    "sys/class/powercap/intel-rapl:1/energy_uj": "1000000",
    "sys/class/powercap/intel-rapl:1/max_energy_range_uj": "4000000",
}


def test_energy_counts_by_package_and_wraps_around(tmp_path: Path) -> None:
    before = rapl_joules(tree(tmp_path, RAPL))
    assert before == {"intel-rapl:0": (3.0, 262143.0), "intel-rapl:1": (1.0, 4.0)}
    tree(tmp_path, {
        "sys/class/powercap/intel-rapl:0/energy_uj": "8500000",
        "sys/class/powercap/intel-rapl:1/energy_uj": "500000",
    })  # fmt: skip
    assert joules_between(before, rapl_joules(tmp_path)) == pytest.approx(5.5 + 3.5)


def test_the_hottest_zone_counts_and_those_switched_off_do_not(tmp_path: Path) -> None:
    tree(tmp_path, {
        "sys/class/thermal/thermal_zone0/temp": "45500",
        "sys/class/thermal/thermal_zone1/temp": "51250",
        "sys/class/thermal/thermal_zone2/temp": "-256000",
        "sys/class/thermal/thermal_zone3/temp": "nonsense",
    })  # fmt: skip
    assert zone_celsius(tmp_path) == 51.25
    assert zone_celsius(tmp_path / "nowhere") is None


def test_throttle_events_and_clocks(tmp_path: Path) -> None:
    cores = {f"sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count": str(core) for core in (1, 2)}
    clocks = {
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "600000",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "2400000",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "1800000",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_max_freq": "2400000",
    }
    tree(tmp_path, cores | clocks)
    assert throttle_events(tmp_path) == 3
    assert clock_share(tmp_path) == 0.75  # of the fastest core: the others may idle
    assert throttle_events(tmp_path / "nowhere") is None
    assert clock_share(tmp_path / "nowhere") is None


def test_a_machine_without_sensors_says_nothing(tmp_path: Path) -> None:
    sensors = Sensors(root=tmp_path, run=lambda command: None)
    with sensors.watched() as load:
        pass
    assert (load.watts, load.celsius, load.throttled) == (None, None, None)
    assert sensors.power_source() is None


def test_a_pi_is_watched_through_its_tool(tmp_path: Path) -> None:
    answers = {"pmic_read_adc": PMIC, "measure_temp": "temp=61.5'C", "get_throttled": "throttled=0x4"}
    read = threading.Event()

    def run(command: Sequence[str]) -> str | None:
        read.set()
        return tools(answers)(command)

    sensors = Sensors(root=tmp_path, run=run, every=0.02)
    with sensors.watched() as load:
        assert read.wait(60)
    assert load.watts == pytest.approx(pmic_watts(PMIC))
    assert load.celsius == 61.5
    assert load.throttled is True
    assert "vcgencmd" in (sensors.power_source() or "")


def test_a_jetson_is_read_before_a_pi(tmp_path: Path) -> None:
    sensors = Sensors(root=tree(tmp_path, ORIN_NANO), run=tools({"pmic": PMIC}))
    assert sensors.watts() == pytest.approx(5.072)
    assert "INA3221" in (sensors.power_source() or "")


def test_a_gpu_that_works_is_what_is_read(tmp_path: Path) -> None:
    asked, read = list[Sequence[str]](), threading.Event()

    def run(command: Sequence[str]) -> str:
        asked.append(command)
        read.set()
        return "250.00, 65, 0x0000000000000004"

    sensors = Sensors(gpu="GPU-1", root=tree(tmp_path, ORIN_NANO | RAPL), run=run, every=0.02)
    with sensors.watched() as load:
        assert read.wait(60)
    assert (load.watts, load.celsius, load.throttled) == (250.0, 65.0, True)
    assert asked[0] == [
        "nvidia-smi",
        "--query-gpu=power.draw,temperature.gpu,clocks_throttle_reasons.active",
        "--format=csv,noheader,nounits",
        "-i",
        "GPU-1",
    ]


def test_counted_energy_becomes_power_and_events_become_throttling(tmp_path: Path) -> None:
    count = "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    sensors = Sensors(root=tree(tmp_path, RAPL | {count: "7"}), run=lambda command: None)
    began = time.monotonic()
    with sensors.watched() as load:
        time.sleep(0.3)
        tree(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": "6000000", count: "8"})
    passed = time.monotonic() - began
    assert load.watts is not None
    assert 3.0 / passed <= load.watts <= 3.0 / 0.3
    assert load.throttled is True
    assert "RAPL" in (sensors.power_source() or "")


def test_the_sensors_of_this_machine_answer_or_are_missing() -> None:
    sensors = Sensors(every=0.05)
    with sensors.watched() as load:
        time.sleep(0.1)
    assert load.watts is None or 0 < load.watts < 10_000
    assert load.celsius is None or -40 < load.celsius < 200
