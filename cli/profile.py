"""`cutline profile` and `cutline profile link`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from cutline.cli import options
from cutline.cli.fields import with_options

if TYPE_CHECKING:
    from cutline.devices.link import LinkProfile
    from cutline.devices.machine.power import Sensors
    from cutline.devices.measurement.rates import MeasuredMachine
    from cutline.devices.profile import DeviceProfile

EPILOG = "Example: cutline profile --out my-board.toml; cutline profile link 127.0.0.1:50051 --out my-link.toml"
LINK_EPILOG = "Example: cutline profile link 127.0.0.1:50051 --out my-link.toml"

TARGET_SECONDS, DRAFTER_SECONDS = 10.0, 3.0  # of measuring layers, beside the loading
MESSAGE_SECONDS = 1.0  # of sending messages to itself
REST_SECONDS, WORK_SECONDS = 2.0, 8.0  # of watching the machine

Tell = Callable[[str], None]  # hears what is being measured
Out = Annotated[
    Path | None, typer.Option(help="The TOML file to write; without it, it is printed.", show_default=False)
]

app = typer.Typer()


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured, and on what."""

    bundle: options.Bundle = None
    target: options.Target = None
    device: Annotated[str, "Where torch runs, with --as cloud: cpu, cuda, cuda:1."] = "cpu"
    provider: options.Provider = None
    image: Annotated[Path | None, "An image to time the preparation of; without it, one of 1024x768."] = None
    threads: options.Threads = None


@app.callback(epilog=EPILOG, invoke_without_command=True, subcommand_metavar="[link HOST:PORT]")
@with_options
def profile(
    *,
    context: typer.Context,
    role: Annotated[
        str, typer.Option("--as", help="edge: ONNX Runtime, as agents run; cloud: torch, as workers run.")
    ] = "edge",
    given: Measured,
    out: Out = None,
    as_json: options.Json = False,
) -> None:
    """Measure this machine, and how fast a target's layers and a drafter run on it: a profile for `cutline plan`.

    Takes half a minute for small models. A sensor that is not there is named in the profile and left out.
    """
    from cutline.errors import InputError

    if context.invoked_subcommand is not None:
        if any(getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE" for name in context.params):
            raise InputError("options of `cutline profile link` stand after the word link")
        return
    _check_out(out)
    seconds = DRAFTER_SECONDS * (role == "edge") + TARGET_SECONDS + MESSAGE_SECONDS + REST_SECONDS + WORK_SECONDS
    with _telling(seconds) as tell:
        if role == "edge":
            if given.device != "cpu":
                raise InputError("--device is torch's, of --as cloud; for an agent's GPU give --provider")
            measured = _as_agent(given, tell, name=_name(out))
        elif role == "cloud":
            if given.bundle is not None or given.provider is not None or given.image is not None:
                raise InputError("a worker has neither --bundle, --provider nor --image; give --target and --device")
            measured = _as_worker(given, tell, name=_name(out))
        else:
            raise InputError(f"--as is {role}; choose edge or cloud")
    _write(measured, out, as_json)


def _as_agent(given: Measured, tell: Tell, *, name: str) -> DeviceProfile:
    from cutline.cli.setting import open_drafter, open_target_for, thread_count
    from cutline.devices.machine.power import Sensors
    from cutline.devices.measurement.rates import matmul_rate, measure_cpu, steady_work
    from cutline.devices.profile import CPU, Compute
    from cutline.edge.diagnostics.benchmark import drafter_table, image_seconds, target_table
    from cutline.edge.inference.runtime import check_provider
    from cutline.errors import ImageError

    runs_on, cores = given.provider or CPU, thread_count(given.threads)
    check_provider(runs_on)
    try:
        picture = None if given.image is None else given.image.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot read {given.image}: {error.strerror}") from None
    drafter, cut = open_drafter(given.bundle), open_target_for(given.target, given.bundle)
    preprocess, shrink = image_seconds(drafter.manifest, picture)
    tables = []
    if cut is not None:
        tables.append(target_table(cut, threads=cores, seconds=TARGET_SECONDS, provider=runs_on, on_step=tell))
    drafts = drafter_table(drafter, threads=cores, seconds=DRAFTER_SECONDS, provider=runs_on, on_step=tell)
    tell("this machine")
    others = {} if runs_on == CPU else {runs_on: Compute(fp32=matmul_rate("fp32", threads=cores, provider=runs_on))}
    machine, work = measure_cpu(threads=cores), steady_work(threads=cores)
    return msgspec.structs.replace(
        _profile(name, machine, work, Sensors(), tell, cores=cores),
        accelerators=others,
        preprocess_seconds=preprocess,
        shrink_seconds=shrink,
        tables=tuple(tables),
        drafters=(drafts,),
    )


def _as_worker(given: Measured, tell: Tell, *, name: str) -> DeviceProfile:
    from cutline.cli.setting import open_target, thread_count
    from cutline.devices.machine.power import Sensors
    from cutline.errors.extras import missing

    try:
        import torch

        from cutline.cloud.model.device import check_device
        from cutline.cloud.model.profiler import gpu_name, measure_device, steady_work, target_table
    except ModuleNotFoundError as error:
        raise missing(f"--as cloud needs {error.name}", "cloud") from None

    device, cores = given.device, thread_count(given.threads)
    check_device(device)
    torch.set_num_threads(cores)
    table = target_table(open_target(given.target), device=device, seconds=TARGET_SECONDS, tell=tell)
    tell("this machine")
    machine, work = measure_device(device, threads=cores), steady_work(device)
    measured = _profile(name, machine, work, Sensors(gpu_name(device)), tell, cores=cores)
    return msgspec.structs.replace(measured, provider=device.partition(":")[0], tables=(table,))


def _profile(
    name: str,
    machine: MeasuredMachine,
    work: Callable[[], object],
    sensors: Sensors,
    tell: Tell,
    *,
    cores: int,
) -> DeviceProfile:
    """Watch the machine's messages, then itself at rest and at `work`, and put together what was measured."""
    import asyncio
    from datetime import UTC, datetime

    from cutline.devices.measurement.rates import disk_free, significant
    from cutline.devices.measurement.steady import watch_work
    from cutline.devices.profile import DeviceProfile
    from cutline.protos.loopback import message_seconds

    tell("messages")
    message = asyncio.run(message_seconds(budget=MESSAGE_SECONDS))
    tell("power and temperature")
    steady = watch_work(work, sensors, rest=REST_SECONDS, seconds=WORK_SECONDS)
    source = sensors.power_source()
    sensed = {"power": steady.loaded_watts, "temperature": steady.celsius, "throttling": steady.throttled}
    return DeviceProfile(
        name=name,
        source="measured",
        date=datetime.now(UTC).date(),
        memory_bytes=machine.memory,
        memory_free_bytes=machine.memory_free,
        disk_free_bytes=disk_free(Path.cwd()),
        memory_bandwidth=machine.bandwidth,
        compute=machine.compute,
        overhead_seconds=machine.overhead,
        message_seconds=significant(message),
        idle_watts=steady.idle_watts,
        loaded_watts=steady.loaded_watts,
        temperature_c=steady.celsius,
        throttled=steady.throttled,
        sustained=steady.sustained,
        cores=cores,
        documents={} if source is None else {"idle_power": source, "loaded_power": source},
        missing=tuple(sensor for sensor, said in sensed.items() if said is None),
        versions=_versions(),
    )


def _versions() -> dict[str, str]:
    """What the figures depend on. What was not used does not count: torch is not there on a device."""
    import platform
    import sys
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("cutline", "numpy", "onnxruntime", "torch"):
        if package in sys.modules:
            try:
                found[package] = version(package)
            except PackageNotFoundError:  # run from a folder, never installed
                continue
    return found


@app.command(epilog=LINK_EPILOG)
@with_options
def link(
    *,
    worker: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The worker at the other end.")],
    seconds: Annotated[float, typer.Option(help="How long to measure, about.")] = 10.0,
    known_by: options.WorkerKeys,
    out: Out = None,
    as_json: options.Json = False,
) -> None:
    """Measure the link to a worker: round trip, jitter, and the rates up and down, as sessions get them."""
    import asyncio

    from cutline.cli.setting import open_keys
    from cutline.edge.diagnostics.link_probe import measure_link
    from cutline.errors import InputError

    if not 1.0 <= seconds <= 300.0:
        raise InputError(f"--seconds is {seconds:g}; give 1 to 300")
    _check_out(out)
    keys = open_keys(known_by)
    with _telling(seconds) as tell:
        tell(f"the link to {worker}")
        measured = asyncio.run(measure_link(worker, keys, name=_name(out), seconds=seconds))
    _write(measured, out, as_json)


def _name(out: Path | None) -> str:
    return "measured" if out is None else out.stem


def _check_out(out: Path | None) -> None:
    """Before anything is measured."""
    from cutline.errors import InputError

    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise InputError(f"--out {out} is not a file in a folder that is there")
    if not _name(out).isprintable():
        raise InputError(f"--out {str(out)!r}: the profile is named as the file; give a name that prints")


@contextmanager
def _telling(seconds: float) -> Iterator[Tell]:
    """A line on stderr that says what is being measured, and what is left of the `seconds` that all of it takes."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    said = TextColumn("{task.description}, some " + f"{seconds:.0f} seconds of measuring in all")
    columns, console = (SpinnerColumn(), said, TimeElapsedColumn()), Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        track = shown.add_task("opening", total=None)
        yield lambda step: shown.update(track, description=f"measuring {step}")


def _write(measured: DeviceProfile | LinkProfile, out: Path | None, as_json: bool) -> None:
    import sys

    from cutline.core.storage.files import write_file
    from cutline.devices.link import LinkProfile
    from cutline.devices.profile import profile_to_toml
    from cutline.devices.toml import to_toml

    text = to_toml(msgspec.to_builtins(measured)) if isinstance(measured, LinkProfile) else profile_to_toml(measured)
    if out is not None:
        write_file(out, text.encode())
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(measured) + b"\n")
    elif out is None:
        sys.stdout.write(text)
    else:
        print(f"wrote {out}")
