"""Lanes of every setup, with all the worker processes that they need."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cutline.bench.faults.cases import Setup
from cutline.bench.faults.checking import Checker
from cutline.bench.faults.lane import Asker, Lane
from cutline.bench.faults.link import FaultyLink
from cutline.bench.worker_process import WorkerProcess
from cutline.cli.access.certificates import DEVICE, SERVER, Authority
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.reference import Reference
from cutline.demo.requests import requests
from cutline.edge.agent import Agent
from cutline.edge.generation.gate import Gate, open_gate, save_gate
from cutline.models.bundle import Bundle
from cutline.protos.channel.credentials import NO_KEYS, AgentKeys

KINDS = ("describe", "sum", "read")  # whose answers are long enough to break in the middle
HALF = "decoder.2"
SLOTS = 16
DRAIN_SECONDS = 1
IMAGES = 1_000_000  # bytes of those that a worker keeps: some hundred, so that it is full soon and grows no more
PACE = 10_000.0  # bytes a second of a link down: an answer takes a while, so there is a middle to break it in
BESIDE = {Setup.ALONE: ["alone, link"], Setup.STANDBY: ["standby, link", "standby, link 2"], Setup.TLS: ["tls, link"]}


@dataclass(frozen=True, slots=True)
class Rig:
    """The `lanes` by name, and the `processes` behind them likewise."""

    lanes: dict[str, Lane]
    processes: dict[str, WorkerProcess]


def ungated(folder: Path) -> Bundle:
    """The demo's drafter with a gate that keeps no answer, in a new folder: mode auto always asks the worker."""
    shutil.copytree(DRAFTER, folder)
    bundle = Bundle.open(folder)
    groups = {name: msgspec.structs.replace(one, threshold=2.0) for name, one in open_gate(bundle).groups.items()}
    save_gate(bundle, Gate(groups))
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
    setups: Collection[Setup], asking: Asker, *, drafter: Bundle, folder: Path, notice: float, beside: bool = True
) -> AsyncIterator[Rig]:
    """A lane of each setup, with keys in `folder`; and `beside` it others whose links alone fail, but for the chain."""
    options = ("--max-sessions", str(SLOTS), "--drain", str(DRAIN_SECONDS), "--image-cache", str(IMAGES))
    own, secured = _keys(folder / "keys") if Setup.TLS in setups else (NO_KEYS, ())
    async with AsyncExitStack() as stack:
        processes: dict[str, WorkerProcess] = {}
        lanes: dict[str, Lane] = {}

        async def started(name: str, *more: str, keys: AgentKeys = NO_KEYS) -> None:
            processes[name] = await stack.enter_async_context(WorkerProcess(TARGET, *options, *more, keys=keys))

        async def linked(name: str) -> FaultyLink:
            return await stack.enter_async_context(FaultyLink(processes[name].address, pace=PACE))

        async def laid(name: str, setup: Setup, links: list[FaultyLink], *fail: str, spare: str | None) -> None:
            other = None if spare is None else processes[spare].address
            agent = Agent(
                drafter,
                worker=[links[0].address, *([other] if other else [])],
                threads=1,
                target=Bundle.open(TARGET, "device"),
                keys=own if setup is Setup.TLS else NO_KEYS,
                notice=notice,
            )
            failing = [processes[one] for one in fail]
            lane = Lane(setup, asking, agent, links=links, workers=failing, spare=other, notice=notice)
            lanes[name] = await stack.enter_async_context(lane)

        starting = [started(setup) for setup in setups if setup in (Setup.ALONE, Setup.STANDBY)]
        if set(setups) - {Setup.TLS}:
            starting.append(started("spare"))
        if Setup.CHAIN in setups:
            starting.append(started("chain 2", "--layers", f"{HALF}:end"))
        if Setup.TLS in setups:
            starting += [started(name, *secured, keys=own) for name in ("tls", "tls spare")]
        await asyncio.gather(*starting)
        for setup in setups:
            spare = "tls spare" if setup is Setup.TLS else "spare"
            if setup is Setup.CHAIN:
                onward = await linked("chain 2")
                await started("chain 1", "--layers", f"image:{HALF}", "--next", onward.address)
                await laid(setup, setup, [await linked("chain 1"), onward], "chain 1", "chain 2", spare=spare)
                continue
            then = None if setup is Setup.ALONE else spare
            await laid(setup, setup, [await linked(setup)], setup, spare=then)
            for name in BESIDE[setup] if beside else ():
                await laid(name, setup, [await linked(spare)], spare=then)
        yield Rig(lanes, processes)


def _keys(folder: Path) -> tuple[AgentKeys, tuple[str, ...]]:
    """Of a device, and a worker's options that let it in."""
    authority = Authority.make(folder)
    server = authority.sign("server", SERVER, hosts=["127.0.0.1"])
    device = authority.sign("device", DEVICE)
    authority.write()
    ca = folder / "ca.crt"
    options = ("--tls-cert", server.certificate, "--tls-key", server.key, "--client-ca", ca)
    return AgentKeys(ca=ca, certificate=device.certificate, key=device.key), tuple(map(str, options))
