"""Gathers the facts about a device, from the machine, the disk and the network."""

from __future__ import annotations

import os
import platform
import struct
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import psutil

from cutline.devices.machine.board import read_board, read_health
from cutline.devices.machine.cores import usable_cores
from cutline.devices.machine.memory import measure_memory
from cutline.devices.machine.power import Sensors
from cutline.devices.measurement.provider_trial import try_runtime
from cutline.edge.diagnostics.facts import BadBundle, BundleFacts, Facts, Served, Unserved, model_of
from cutline.edge.diagnostics.link_probe import measure_link
from cutline.errors import BundleError, WorkerError
from cutline.errors.names import printable
from cutline.models.bundle import Bundle
from cutline.protos.channel.credentials import NO_KEYS, AgentKeys
from cutline.protos.client import WorkerClient

_WORK_SECONDS = 1.5  # of load while the sensors are read
_LINK_SECONDS = 2.0
_SIDE = 512

OnStep = Callable[[str], None]  # called with the name of each step


async def examine(
    bundle: Path,
    *,
    target: Path | None,
    worker: str | None,
    provider: str,
    keys: AgentKeys = NO_KEYS,
    on_step: OnStep = lambda step: None,
) -> Facts:
    """Gather all facts; takes some seconds, plus the time to read the bundles. Raises InputError."""
    served: Served | Unserved | None = None
    if worker is not None:
        on_step(f"the worker at {worker}")
        served = await _worker(worker, keys)
    on_step("ONNX Runtime")
    runtime = try_runtime()
    on_step("power and heat")
    product = np.ones((_SIDE, _SIDE), np.float32)
    with np.errstate(all="ignore"):  # BLAS on some ARM boards sets error flags for a product of ones
        health = read_health(Sensors(), lambda: product @ product, seconds=_WORK_SECONDS)
    on_step("the bundle")
    return Facts(
        version=_version(),
        board=read_board(),
        system=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        bits=8 * struct.calcsize("P"),
        python=platform.python_version(),
        cores=os.cpu_count() or 1,
        usable=usable_cores(),
        memory=measure_memory(),
        disk=psutil.disk_usage(str(_existing(bundle))).free,
        runtime=runtime,
        provider=provider,
        health=health,
        bundle=_model(bundle),
        target=None if target is None else _model(target),
        worker=served,
    )


def _model(path: Path) -> BundleFacts | BadBundle:
    try:
        return model_of(printable(str(path)), Bundle.open(path, "device").manifest)
    except BundleError as error:
        return BadBundle(path=printable(str(path)), fault=printable(str(error)))


async def _worker(address: str, keys: AgentKeys) -> Served | Unserved:
    try:
        async with WorkerClient(address, keys) as client:
            described = await client.describe()
        link = await measure_link(address, keys, name="measured", seconds=_LINK_SECONDS)
    except WorkerError as error:
        return Unserved(address=address, fault=str(error))
    return Served(
        address=address,
        model=described.model,
        name=described.name,
        version=described.version,
        start=described.start,
        sessions=described.sessions,
        max_sessions=described.max_sessions,
        rtt_ms=link.rtt_ms,
        uplink_mbps=link.uplink_mbps,
        downlink_mbps=link.downlink_mbps,
    )


def _existing(path: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def _version() -> str:
    try:
        return version("cutline")
    except PackageNotFoundError:  # run from a folder, never installed
        return "unknown"
