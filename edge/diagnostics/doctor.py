"""Diagnoses a device: derives findings and advice from facts. Pure functions.

`cutline.edge.diagnostics.inspection` gathers the facts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from cutline.devices.machine.board import BoardHealth
from cutline.devices.machine.memory import Memory
from cutline.edge.diagnostics.facts import BadBundle, BundleFacts, Facts, Served, Unserved
from cutline.models.bundle import Precision
from cutline.partitioner.cost import AGENT_BYTES

UNWELL = 8  # the exit code if there is a problem
HOT_CELSIUS = 80.0  # boards throttle their clock from here on
MIN_DISK_BYTES = 100 << 20  # for logs, spools and new bundles
_NARROWER: dict[Precision, tuple[Precision, ...]] = {"fp32": ("int8", "int4"), "int8": ("int4",), "int4": ()}

Level = Literal["ok", "advice", "problem"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one `check`: `what` was found and, unless it is `ok`, what to `do`."""

    check: str
    level: Level
    what: str
    do: str | None = None


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """All findings; `well` says that none is a problem, though there may be advice."""

    well: bool
    findings: tuple[Finding, ...]
    facts: Facts


def diagnose(facts: Facts) -> Diagnosis:
    """All findings about a device."""
    checks = (_machine, _runtime, _cores, _health, _memory, _disk, _bundle, _target, _worker)
    findings = tuple(finding for check in checks for finding in check(facts))
    return Diagnosis(well=all(finding.level != "problem" for finding in findings), findings=findings, facts=facts)


def size(count: float) -> str:
    """Bytes as text, such as `5.1 GB`."""
    for unit, divisor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= divisor:
            return f"{count / divisor:.1f} {unit}" if count < 100 * divisor else f"{count / divisor:.0f} {unit}"
    return f"{count:.0f} B"


def _machine(facts: Facts) -> Iterator[Finding]:
    named = facts.board.model or "a machine without a name"
    known = f", profile {facts.board.profile}" if facts.board.profile else ""
    what = f"{named} ({facts.system}, {facts.architecture}{known})"
    yield Finding(check="board", level="ok", what=what)
    if facts.bits < 64:
        yield Finding(
            check="python",
            level="problem",
            what=f"Python {facts.python} has {facts.bits} bits; ONNX Runtime needs 64",
            do="install the 64-bit system of your board and its Python",
        )
    else:
        yield Finding(check="python", level="ok", what=f"Python {facts.python}, Cutline {facts.version}")


def _runtime(facts: Facts) -> Iterator[Finding]:
    runtime = facts.runtime
    if runtime.fault is not None:
        yield Finding(
            check="runtime",
            level="problem",
            what=f"ONNX Runtime does not load: {runtime.fault}",
            do="install it anew: pip install --force-reinstall onnxruntime",
        )
        return
    names = [one.name for one in runtime.providers]
    if facts.provider not in names:
        yield Finding(
            check="providers",
            level="problem",
            what=f"ONNX Runtime {runtime.version} has no provider {facts.provider}; it has {', '.join(names)}",
            do=f"use one of those, or install a build of ONNX Runtime with {facts.provider}",
        )
    working = [one.name for one in runtime.providers if one.fault is None]
    if working:
        what = f"ONNX Runtime {runtime.version} computes with {', '.join(working)}"
        yield Finding(check="providers", level="ok", what=what)
    for one in runtime.providers:
        if one.fault is None:
            continue
        wanted = one.name == facts.provider
        instead = f"use --provider {working[0]} until its driver and libraries are there" if working else None
        yield Finding(
            check="providers",
            level="problem" if wanted or one.name == "cpu" else "advice",
            what=f"{one.name} is listed but does not work: {one.fault}",
            do=instead or "install ONNX Runtime anew: pip install --force-reinstall onnxruntime",
        )


def _cores(facts: Facts) -> Iterator[Finding]:
    if facts.usable < facts.cores:
        yield Finding(
            check="cores",
            level="advice",
            what=f"{facts.usable} of {facts.cores} cores may be used",
            do="raise the container's CPU quota or the process's affinity if models shall have more",
        )
    else:
        yield Finding(check="cores", level="ok", what=f"{facts.cores} cores")


def _health(facts: Facts) -> Iterator[Finding]:
    health = facts.health
    said = [
        f"{health.celsius:.0f} °C" if health.celsius is not None else None,
        f"{health.watts:.1f} W ({health.power_source})" if health.watts is not None else None,
        f"power mode {health.power_mode}" if health.power_mode else None,
    ]
    known, troubles = ", ".join(one for one in said if one), list(_troubles(health))
    if known or not troubles:
        yield Finding(check="power", level="ok", what=known or "no sensor of power or temperature")
    yield from troubles


def _troubles(health: BoardHealth) -> Iterator[Finding]:
    supply = "use the supply made for this board (a Raspberry Pi 5 wants 5 V and 5 A) and a short, thick cable"
    cooling = "add a heat sink or a fan, or let the device work less"
    if health.under_volted:
        yield Finding(check="power", level="problem", what="the supply gives too little voltage", do=supply)
    elif health.under_volted_before:
        what = "the supply gave too little voltage at some time since the start"
        yield Finding(check="power", level="advice", what=what, do=supply)
    hot = health.celsius is not None and health.celsius >= HOT_CELSIUS
    if health.throttled:
        yield Finding(
            check="heat",
            level="problem",
            what="the clock is held back under load" + (f" at {health.celsius:.0f} °C" if health.celsius else ""),
            do=supply if health.under_volted and not hot else cooling,
        )
    elif hot:
        yield Finding(check="heat", level="advice", what=f"{health.celsius:.0f} °C: nearly too hot", do=cooling)
    elif health.throttled_before:
        what = "the clock was held back at some time since the start"
        yield Finding(check="heat", level="advice", what=what, do=cooling)
    if health.power_mode is not None and not health.power_mode.startswith("MAXN"):
        yield Finding(
            check="power",
            level="advice",
            what=f"power mode {health.power_mode} caps the clocks",
            do="`sudo nvpmodel -p --verbose` lists the modes, `sudo nvpmodel -m NUMBER` chooses a faster one",
        )


def _memory(facts: Facts) -> Iterator[Finding]:
    memory = facts.memory
    where = f" of {size(memory.total)}"
    if memory.limit is not None and memory.limit < memory.total:
        where = f" of the {size(memory.limit)} that the container may have"
    if not isinstance(facts.bundle, BundleFacts):
        yield Finding(check="memory", level="ok", what=f"{size(memory.free)} free{where}")
        return
    yield _fit(facts.bundle, memory, where)
    if memory.swap == 0 and facts.board.profile is not None:
        yield Finding(
            check="swap",
            level="advice",
            what="no swap: where memory runs out, the system ends processes or hangs",
            do="add some: `sudo fallocate -l 4G /swap && sudo chmod 600 /swap && sudo mkswap /swap && "
            "sudo swapon /swap`, or zram",
        )
    if isinstance(facts.target, BundleFacts) and facts.target.role == "target":
        yield _spans(facts.bundle, facts.target, memory)


def _fit(bundle: BundleFacts, memory: Memory, where: str) -> Finding:
    """Whether an agent with this drafter fits into memory, or else which precision would."""
    need = AGENT_BYTES + bundle.needs[bundle.precision]
    what = f"an agent with {bundle.name} needs {size(need)}, {size(memory.free)} free{where}"
    if need <= memory.free:
        return Finding(check="memory", level="ok", what=what)
    for precision in _NARROWER[bundle.precision]:
        if AGENT_BYTES + bundle.needs[precision] <= memory.free:
            do = f"{precision} fits: export it again with `cutline export --precision {precision}`"
            return Finding(check="memory", level="problem", what=what, do=do)
    do = "no precision fits: end other programs, or take a smaller model"
    return Finding(check="memory", level="problem", what=what, do=do)


def _spans(bundle: BundleFacts, target: BundleFacts, memory: Memory) -> Finding:
    """Up to which cut the target fits into memory beside the drafter."""
    beside = AGENT_BYTES + bundle.needs[bundle.precision]
    fitting = [(cut, need) for cut, need in target.cuts if beside + need <= memory.free]
    last, need = target.cuts[-1]
    if len(fitting) == len(target.cuts):
        what = f"beside it {target.name} fits up to any cut: {size(beside + need)} in all at {last}"
        return Finding(check="cuts", level="ok", what=what)
    what = f"beside it {target.name} needs {size(beside + need)} up to {last}, {size(memory.free)} free"
    if fitting:
        do = f"cut at {fitting[-1][0]} or before, which takes {size(beside + fitting[-1][1])} in all"
        return Finding(check="cuts", level="advice", what=what, do=do)
    first, least = target.cuts[0]
    what = f"beside it no layer of {target.name} fits: {size(beside + least)} up to {first}, {size(memory.free)} free"
    return Finding(check="cuts", level="problem", what=what, do="use mode cloud, draft or auto without a cut")


def _disk(facts: Facts) -> Iterator[Finding]:
    if facts.disk < MIN_DISK_BYTES:
        yield Finding(
            check="disk",
            level="problem",
            what=f"{size(facts.disk)} free where the bundle is",
            do=f"remove something: logs, spools and new bundles want {size(MIN_DISK_BYTES)} at least",
        )
    else:
        yield Finding(check="disk", level="ok", what=f"{size(facts.disk)} free where the bundle is")


def _bundle(facts: Facts) -> Iterator[Finding]:
    bundle = facts.bundle
    if isinstance(bundle, BadBundle):
        yield _bad(bundle)
    elif bundle.role != "drafter":
        what = f"{bundle.path} holds a {bundle.role}, not a drafter"
        yield Finding(check="bundle", level="problem", what=what, do="name it with --target, a drafter with --bundle")
    else:
        what = f"drafter {bundle.name}, {bundle.precision}, every file verified"
        yield Finding(check="bundle", level="ok", what=what)
        if not bundle.calibrated:
            what, do = f"{bundle.name} has no gate, which mode auto decides by", "make one with `cutline calibrate`"
            yield Finding(check="gate", level="advice", what=what, do=do)


def _target(facts: Facts) -> Iterator[Finding]:
    bundle, target = facts.bundle, facts.target
    if isinstance(target, BadBundle):
        yield _bad(target)
    elif target is not None and target.role != "target":
        what = f"{target.path} holds a {target.role}, not a target"
        yield Finding(check="target", level="problem", what=what, do="name it with --bundle, a target with --target")
    elif target is not None and isinstance(bundle, BundleFacts) and bundle.role == "drafter":
        if bundle.target != target.identity:
            what = f"{bundle.name} drafts for another target than {target.name}"
            do = "export the drafter for this target: `cutline export --target`"
            yield Finding(check="target", level="problem", what=what, do=do)
        else:
            yield Finding(check="target", level="ok", what=f"target {target.name}, {target.precision}")


def _bad(bundle: BadBundle) -> Finding:
    what, _, do = bundle.fault.rpartition("; ")
    return Finding(check="bundle", level="problem", what=what or do, do=do if what else "export the bundle again")


def _worker(facts: Facts) -> Iterator[Finding]:
    worker = facts.worker
    if worker is None:
        yield Finding(check="worker", level="ok", what="none named: this device answers alone, in mode edge")
        return
    if isinstance(worker, Unserved):
        what, do = worker.fault.split("; ")[0], "start one there with `cutline cloud`, or mend the network in between"
        yield Finding(check="worker", level="problem", what=what, do=do)
        return
    link = f"{worker.rtt_ms:.3g} ms, {worker.uplink_mbps:.3g} Mbit/s up, {worker.downlink_mbps:.3g} down"
    yield Finding(check="link", level="ok", what=f"to {worker.address}: {link}")
    troubles = list(_unfit(facts, worker))
    if not troubles:
        room = f"{worker.sessions} of {worker.max_sessions} sessions taken"
        yield Finding(check="worker", level="ok", what=f"{worker.address} serves {worker.name}; {room}")
    yield from troubles


def _unfit(facts: Facts, worker: Served) -> Iterator[Finding]:
    bundle = facts.bundle
    if isinstance(bundle, BundleFacts) and bundle.role == "drafter" and bundle.target != worker.model:
        what = f"{worker.address} serves {worker.name}, another model than {bundle.name} was made for"
        do = f"start the worker with the target of {bundle.name}, or use a drafter made for {worker.name}"
        yield Finding(check="worker", level="problem", what=what, do=do)
    if worker.start != "image":
        what = f"{worker.address} has the layers from {worker.start} on alone, so it takes no images"
        do = "name the worker that is first in the chain, whose layers start at image"
        yield Finding(check="worker", level="problem", what=what, do=do)
    if worker.sessions >= worker.max_sessions:
        what = f"{worker.address} has no room: {worker.sessions} of {worker.max_sessions} sessions taken"
        yield Finding(check="worker", level="advice", what=what, do="try again later, or raise its --max-sessions")
    if worker.version != facts.version:
        what = f"{worker.address} runs Cutline {worker.version}, this device {facts.version}"
        yield Finding(check="worker", level="advice", what=what, do="install the same version on both")
