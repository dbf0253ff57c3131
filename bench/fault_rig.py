"""Lanes of every setup, with all the worker processes that they need."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cutline.bench.fault_cases import Setup
from cutline.bench.fault_check import Checker
from cutline.bench.fault_lane import Asker, Lane
from cutline.bench.faulty_link import FaultyLink
from cutline.bench.worker_process import WorkerProcess
from cutline.cli.certificates import DEVICE, SERVER, Authority
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.reference import Reference
from cutline.demo.requests import requests
from cutline.edge.gate import open_gate, save_gate
from cutline.models.bundle import Bundle
from cutline.protos.security import NO_KEYS, AgentKeys

KINDS = ("describe", "sum", "read")  # whose answers are long enough to break in the middle
HALF = "decoder.2"
SLOTS = 16
DRAIN_SECONDS = 1


@dataclass(frozen=True, slots=True)
class Rig:
    """The `lanes`, and the `processes` behind them by name."""

    lanes: dict[Setup, Lane]
    processes: dict[str, WorkerProcess]
    keys: dict[str, AgentKeys]


def ungated(folder: Path) -> Bundle:
    """The demo's drafter with a gate that keeps no answer, in a new folder: mode auto always asks the worker."""
    shutil.copytree(DRAFTER, folder)
    bundle = Bundle.open(folder)
    save_gate(bundle, msgspec.structs.replace(open_gate(bundle), threshold=2.0))
    return Bundle.open(folder)


def asker(drafter: Bundle, *, cards: int, seed: int) -> Asker:
    """Questions about so many cards, with the unsplit target's answers."""
    asked = [one for one in requests(Split.EVALUATION, cards, seed) if one.question.kind in KINDS]
    reference = Reference(Bundle.open(TARGET))
    truths = [reference.answer(one.image, one.question.text) for one in asked]
    long = [place for place, truth in enumerate(truths) if len(truth) >= 6]
    return Asker([asked[place] for place in long], [truths[place] for place in long], Checker(drafter))


@asynccontextmanager
async def rig(
    setups: Collection[Setup], asking: Asker, *, drafter: Bundle, folder: Path, notice: float
) -> AsyncIterator[Rig]:
    """Lanes of these setups, with keys in `folder`."""
    # The slots are few, and drained sessions short.
    options = ("--max-sessions", str(SLOTS), "--drain", str(DRAIN_SECONDS))
    target = Bundle.open(TARGET, "device")
    own, secured = _keys(folder / "keys") if Setup.TLS in setups else (NO_KEYS, ())
    async with AsyncExitStack() as stack:
        processes: dict[str, WorkerProcess] = {}
        keys: dict[str, AgentKeys] = {}

        async def started(name: str, *more: str, known: AgentKeys = NO_KEYS) -> None:
            processes[name] = await stack.enter_async_context(WorkerProcess(TARGET, *options, *more, keys=known))
            keys[name] = known

        starting = []
        if {Setup.STANDBY, Setup.CHAIN} & set(setups):
            starting.append(started("spare"))
        starting += [started(setup) for setup in setups if setup in (Setup.ALONE, Setup.STANDBY)]
        if Setup.CHAIN in setups:
            starting.append(started("chain 2", "--layers", f"{HALF}:end"))
        if Setup.TLS in setups:
            starting += [started(name, *secured, known=own) for name in ("tls", "tls spare")]
        await asyncio.gather(*starting)
        lanes = {}
        for setup in setups:
            links = []
            behind = ["chain 1", "chain 2"] if setup is Setup.CHAIN else [str(setup)]
            for name in reversed(behind):
                if name == "chain 1":
                    await started(name, "--layers", f"image:{HALF}", "--next", links[0].address)
                links.insert(0, await stack.enter_async_context(FaultyLink(processes[name].address)))
            spare = {Setup.STANDBY: "spare", Setup.CHAIN: "spare", Setup.TLS: "tls spare"}.get(setup)
            lanes[setup] = await stack.enter_async_context(
                Lane(
                    setup,
                    asking,
                    drafter=drafter,
                    target=target,
                    links=links,
                    workers=[processes[name] for name in behind],
                    spare=processes[spare].address if spare else None,
                    notice=notice,
                    keys=own if setup is Setup.TLS else NO_KEYS,
                )
            )
        yield Rig(lanes, processes, keys)


def _keys(folder: Path) -> tuple[AgentKeys, tuple[str, ...]]:
    """Of a device, and a worker's options that let it in."""
    authority = Authority.make(folder)
    server = authority.sign("server", SERVER, hosts=["127.0.0.1"])
    device = authority.sign("device", DEVICE)
    ca = folder / "ca.crt"
    options = ("--tls-cert", server.certificate, "--tls-key", server.key, "--client-ca", ca)
    return AgentKeys(ca=ca, certificate=device.certificate, key=device.key), tuple(map(str, options))
