"""Reads power, temperature and throttling from the machine's sensors.

Functions that take text parse the output of tools and the kernel's files; `Sensors` finds out which there are. A
missing or unreadable sensor gives None; nothing is guessed.

    power: INA3221 (Jetson), PMIC (Raspberry Pi 5), nvidia-smi (GPU), RAPL (x86), the first of them that exists
    temperature: vcgencmd, nvidia-smi, thermal zones        throttling: vcgencmd, nvidia-smi, the kernel's files
"""

from __future__ import annotations

import math
import re
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_TOTAL_RAILS = ("VDD_IN", "VIN")  # of boards that measure the power of the whole module
_PI_THROTTLED = 0b1110  # now: frequency capped, throttled, soft temperature limit (bit 0 is under-voltage)
_GPU_THROTTLED = 0x4 | 0x8 | 0x20 | 0x40 | 0x80  # power cap, and slowdowns by heat or power, but not idling
_THROTTLED_CLOCK_SHARE = 0.9  # a core under load below this share of its allowed clock is throttled
_TOOL_SECONDS = 5.0

Run = Callable[[Sequence[str]], "str | None"]


def pmic_watts(text: str) -> float | None:
    """The sum over the rails of `vcgencmd pmic_read_adc` (Raspberry Pi 5), without USB ports and the 5 V pins."""
    found = re.findall(r"(\w+)_([AV]) \w+\(\d+\)=([\d.]+)", text)
    amperes, volts = ({rail: float(value) for rail, unit, value in found if unit == wanted} for wanted in "AV")
    rails = [amperes[rail] * volts[rail] for rail in amperes.keys() & volts.keys()]
    return math.fsum(rails) if rails else None


def pi_celsius(text: str) -> float | None:
    """The degrees in the output of `vcgencmd measure_temp`, such as `temp=48.3'C`."""
    found = re.search(r"temp=([\d.]+)", text)
    return float(found[1]) if found else None


def pi_throttled(text: str) -> bool | None:
    """Whether the clock is throttled now, from `vcgencmd get_throttled`, such as `throttled=0x50005`."""
    found = re.search(r"throttled=0x([0-9a-fA-F]+)", text)
    return bool(int(found[1], 16) & _PI_THROTTLED) if found else None


@dataclass(frozen=True, slots=True)
class GpuReading:
    """The readings of one GPU by nvidia-smi; None for those that the GPU lacks."""

    watts: float | None
    celsius: float | None
    throttled: bool | None


GPU_QUERY = ("power.draw", "temperature.gpu", "clocks_throttle_reasons.active")


def gpu_reading(line: str) -> GpuReading:
    """Parse a line of `nvidia-smi --query-gpu=` with the fields of GPU_QUERY, without units."""
    power, temperature, reasons, *_ = [*(part.strip() for part in line.split(",")), "", "", ""]
    known = re.fullmatch(r"0x[0-9a-fA-F]+", reasons) is not None
    return GpuReading(_number(power), _number(temperature), bool(int(reasons, 16) & _GPU_THROTTLED) if known else None)


def ina3221_watts(root: Path) -> float | None:
    """Watts by all INA3221 chips: the rail of the whole module if there is one, else the sum of all rails."""
    rails: dict[str, float] = {}
    for chip in sorted(root.glob("sys/class/hwmon/hwmon*")):
        if _text(chip / "name") != "ina3221":
            continue
        for channel in "123":
            label = _text(chip / f"in{channel}_label") or ""
            millivolts, milliamperes = (
                _number(_text(chip / f"in{channel}_input")),
                _number(_text(chip / f"curr{channel}_input")),
            )
            if label not in ("", "NC") and millivolts is not None and milliamperes is not None:
                rails[label] = millivolts * milliamperes / 1e6
    for total in _TOTAL_RAILS:
        if total in rails:
            return rails[total]
    return sum(rails.values()) if rails else None


def rapl_joules(root: Path) -> dict[str, tuple[float, float]]:
    """The energy counter of each processor package and its range, in joules, by zone. Often only root may read it."""
    counters = {}
    for zone in sorted(root.glob("sys/class/powercap/intel-rapl:*")):
        if (_text(zone / "name") or "").startswith("package"):
            energy, span = _number(_text(zone / "energy_uj")), _number(_text(zone / "max_energy_range_uj"))
            if energy is not None and span is not None:
                counters[zone.name] = (energy / 1e6, span / 1e6)
    return counters


def joules_between(before: dict[str, tuple[float, float]], after: dict[str, tuple[float, float]]) -> float:
    """The joules between two readings of the counters, which may wrap around to 0."""
    return sum((after[zone][0] - energy) % (span or 1.0) for zone, (energy, span) in before.items() if zone in after)


def zone_celsius(root: Path) -> float | None:
    """The degrees of the hottest thermal zone, without the impossible values of zones that are switched off."""
    degrees = [_number(_text(zone / "temp")) for zone in root.glob("sys/class/thermal/thermal_zone*")]
    possible = [value / 1000 for value in degrees if value is not None and -40_000 < value < 200_000]
    return max(possible, default=None)


def throttle_events(root: Path) -> int | None:
    """How often the processor's cores were throttled by heat since boot (Intel); None without such counters."""
    cores = root.glob("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count")
    counts = [count for core in cores if (count := _number(_text(core))) is not None]
    return int(sum(counts)) if counts else None


def clock_share(root: Path) -> float | None:
    """The clock of the fastest core as a share of its allowed maximum; under load it should be near 1."""
    shares = []
    for policy in root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq"):
        now, allowed = _number(_text(policy / "scaling_cur_freq")), _number(_text(policy / "scaling_max_freq"))
        if now and allowed:
            shares.append(now / allowed)
    return max(shares, default=None)


@dataclass(slots=True)
class LoadReadings:
    """The sensors' readings over some time; None without a sensor. Filled in at the end."""

    watts: float | None = None
    celsius: float | None = None
    throttled: bool | None = None


@dataclass(slots=True)
class Sensors:
    """The machine's sensors. `gpu` is nvidia-smi's id of the GPU that does the work, if one does.

    `root` is the root of the file system. `run` runs a tool and returns its output, None if it is missing. Sensors
    without a counter are read `every` so many seconds; running tools more often would be load by itself.
    """

    gpu: str | None = None
    root: Path = Path("/")
    run: Run = field(default=lambda command: _run(command))
    every: float = 0.5

    def power_source(self) -> str | None:
        """The sensor from which `watched` takes the power, as text."""
        if self.gpu is not None:
            return "nvidia-smi: the GPU alone" if self._gpu().watts is not None else None
        if ina3221_watts(self.root) is not None:
            return "INA3221: the module"
        if pmic_watts(self._vcgencmd("pmic_read_adc")) is not None:
            return "vcgencmd pmic_read_adc: the board without what its USB ports and 5 V pins feed"
        return "RAPL: the processor packages alone" if rapl_joules(self.root) else None

    def watts(self) -> float | None:
        """The current power; None without a sensor, and for RAPL, which only counts energy."""
        if self.gpu is not None:
            return self._gpu().watts
        measured = ina3221_watts(self.root)
        return pmic_watts(self._vcgencmd("pmic_read_adc")) if measured is None else measured

    def celsius(self) -> float | None:
        """The temperature of the GPU or processor that does the work."""
        if self.gpu is not None:
            return self._gpu().celsius
        board = pi_celsius(self._vcgencmd("measure_temp"))
        return zone_celsius(self.root) if board is None else board

    def throttled(self) -> bool | None:
        """Whether the clock is throttled; meaningful under load. Counters of events need `watched`."""
        if self.gpu is not None:
            return self._gpu().throttled
        board = pi_throttled(self._vcgencmd("get_throttled"))
        if board is not None:
            return board
        share = clock_share(self.root)
        return None if share is None else share < _THROTTLED_CLOCK_SHARE

    @contextmanager
    def watched(self) -> Iterator[LoadReadings]:
        """Watch while the block runs: the mean power, the temperature at the end, whether the clock was throttled."""
        load = LoadReadings()
        readings: list[tuple[float | None, bool | None]] = []
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(self.every):
                readings.append((self.watts(), self.throttled()))

        before, events, began = rapl_joules(self.root), throttle_events(self.root), time.monotonic()
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield load
        finally:
            passed = time.monotonic() - began
            counted = joules_between(before, rapl_joules(self.root)) / passed if before and self.gpu is None else None
            stop.set()
            watcher.join()
            load.watts = _mean([watts for watts, _ in readings if watts is not None]) or counted
            load.celsius = self.celsius()
            throttled = [reading for _, reading in readings if reading is not None]
            if events is not None and self.gpu is None:
                throttled.append((throttle_events(self.root) or 0) > events)
            load.throttled = any(throttled) if throttled else None

    def _vcgencmd(self, question: str) -> str:
        return self.run(["vcgencmd", question]) or ""

    def _gpu(self) -> GpuReading:
        query = [f"--query-gpu={','.join(GPU_QUERY)}", "--format=csv,noheader,nounits", "-i", self.gpu or ""]
        return gpu_reading(self.run(["nvidia-smi", *query]) or "")


def _run(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # not installed, or it failed
    return done.stdout


def _text(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except OSError:  # missing, forbidden, or a sensor that does not answer
        return None


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None
