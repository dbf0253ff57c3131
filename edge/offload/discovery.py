"""The workers that a directory lists: which there are, how busy each is, and which is the best to ask."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cutline.edge.offload.worker_pool import Workers
from cutline.errors import CutlineError, InputError, WorkerUnavailable
from cutline.protos.channel.address import is_loopback, parse_address
from cutline.protos.channel.connection import given_up
from cutline.protos.channel.credentials import NO_KEYS, AgentKeys
from cutline.protos.client import WorkerClient
from cutline.protos.directory import DirectoryClient, ListedWorker

log = logging.getLogger(__name__)

MEASURE_SECONDS = 2.0  # that the way to a worker is timed for at most
FULL_SECONDS = 10.0  # what having no place costs: a refusal, and the wait for somebody to leave
FILL_SECONDS = 0.05  # what all places taken but one cost, where nobody waits yet: fewer share a pass
MOVE_SECONDS = 0.5  # what it is worth to stay with the worker that has a conversation's images and cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A worker as the choice sees it; `rtt` in seconds is None before it is measured."""

    address: str
    queue_seconds: float
    sessions: int
    max_sessions: int
    rtt: float | None = None


def cost(one: Candidate) -> float:
    """Seconds that a session there is believed to lose. A way that is not known is taken for a short one, and tried."""
    if one.sessions >= one.max_sessions:
        return FULL_SECONDS + one.queue_seconds
    return (one.rtt or 0.0) + one.queue_seconds + FILL_SECONDS * one.sessions / one.max_sessions


def pick(candidates: Sequence[Candidate], rng: random.Random) -> Candidate | None:
    """The cheaper of two that are drawn. None of none.

    Were all agents to take the cheapest of a list that is seconds old, they would all take the same one.
    """
    return min(rng.sample(candidates, min(2, len(candidates))), key=cost, default=None)


def arrange(candidates: Sequence[Candidate], rng: random.Random, *, holder: str | None = None) -> tuple[str, ...]:
    """The addresses in the order in which to ask.

    The `holder` of the conversation first, unless another is much cheaper; else one by `pick`; then by cost.
    """
    best = min(map(cost, candidates), default=0.0)
    stay = (one for one in candidates if one.address == holder and cost(one) <= best + MOVE_SECONDS)
    first = next(stay, None) or pick(candidates, rng)
    return tuple(one.address for one in sorted(candidates, key=lambda one: (one is not first, cost(one))))


class ListedWorkers(Workers):
    """The workers of `model` in the directory at the address `directory`, asked again every `refresh` seconds.

    `open` it. Where the directory does not answer, those that it listed last are taken to be there still.
    """

    def __init__(
        self,
        directory: str,
        *,
        model: str,
        keys: AgentKeys = NO_KEYS,
        offline: bool = False,
        refresh: float = 2.0,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__((), keys=keys, offline=offline)
        self._address = directory
        self._directory: DirectoryClient | None = DirectoryClient(directory, keys)
        self._model = model
        self._refresh_seconds = refresh
        self._rng = rng or random.SystemRandom()
        self._listed: dict[str, ListedWorker] = {}
        self._asked = Counter[str]()  # sessions since the listing, which it cannot count
        self._rtts: dict[str, float] = {}
        self._answers = False
        self._following: asyncio.Task[None] | None = None
        self._measuring: asyncio.Task[None] | None = None
        self.nobody = WorkerUnavailable(f"the directory at {directory} was not asked yet; this agent is offline")

    async def open(self) -> None:
        """Ask the directory, and go on asking. One that does not answer is tried again; `nobody` says so till then."""
        await self._refresh()
        self._following = asyncio.create_task(self._follow())
        self._following.add_done_callback(_tell_ended)

    async def close(self) -> None:
        for task in (self._following, self._measuring):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        if self._directory is not None:
            await self._directory.close()
        await super().close()

    def choose(self, *, first: str | None = None, but: Collection[str] = ()) -> WorkerClient | None:
        client = super().choose(first=first, but=but)
        if client is not None:
            self._asked[client.address] += 1
        return client

    def wait(self, *, but: Collection[str] = ()) -> float | None:
        """As without a directory; while that answers, whoever replaces a worker that died may be listed soon."""
        found = super().wait(but=but)
        soon = self._answers and bool(self.addresses) and not self.offline
        return self._refresh_seconds if found is None and soon else found

    def _order(self, addresses: Sequence[str], first: str | None) -> Sequence[str]:
        return arrange([self._candidate(address) for address in addresses], self._rng, holder=first)

    def _candidate(self, address: str) -> Candidate:
        listed = self._listed[address]
        return Candidate(
            address=address,
            queue_seconds=listed.queue_seconds,
            sessions=listed.sessions + self._asked[address],
            max_sessions=listed.max_sessions,
            rtt=self._rtts.get(address),
        )

    def _disconnect(self) -> None:
        super()._disconnect()
        if self._directory is not None:
            self._end(self._directory, self._directory.close())
            self._directory = None

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._refresh_seconds)
            await self._refresh()
            if self._measuring is None or self._measuring.done():  # a worker that is silent holds up no listing
                self._measuring = asyncio.create_task(self._measure())

    async def _refresh(self) -> None:
        if self.offline:
            return
        try:
            self._directory = self._directory or DirectoryClient(self._address, self._keys)
            listing = await self._directory.list(model=self._model)
        except CutlineError as error:  # a token file that does not read, too
            log.info("%s", error)
            self.nobody, self._answers = error, False
            return
        except asyncio.CancelledError:
            if given_up():
                raise
            return  # the agent went offline, which closed the connection
        self._answers = True
        listed = {one.address: one for one in listing.workers if self._reaches(one.address)}
        self.nobody = WorkerUnavailable(
            f"the directory at {self._address} lists no worker of this model"
            + (" that can be reached without --ca" if listing.workers else "")
        )
        if listed and not self.offline:
            self._listed = listed
            self._asked.clear()
            self._have(tuple(listed))
            for one in listed.values():
                self.measured(one.address, queue=one.queue_seconds)

    def _reaches(self, address: str) -> bool:
        """Whether a worker that is listed there can be connected to, by these keys."""
        try:
            host, port = parse_address(address)
        except InputError:
            return False
        return port > 0 and (self._keys.ca is not None or is_loopback(host))

    async def _measure(self) -> None:
        """Time the way to one worker: the one that was measured the longest ago, or never."""
        order = {address: place for place, address in enumerate(self._rtts)}
        oldest = min(self.addresses, key=lambda address: order.get(address, -1), default=None)
        if oldest is None or self.offline:
            return
        began = time.perf_counter()
        try:
            async with asyncio.timeout(MEASURE_SECONDS):
                await self._client(oldest).probe(up=0, down=0)
            took = time.perf_counter() - began
            self.measured(oldest, rtt=took)
        except TimeoutError:
            log.info("the worker at %s did not answer a probe in %g seconds", oldest, MEASURE_SECONDS)
            took = MEASURE_SECONDS
        except CutlineError as error:  # a session that meets the same says it
            log.info("%s", error)
            took = MEASURE_SECONDS  # as if it had not answered: what is not known would be preferred
        self._rtts.pop(oldest, None)
        self._rtts[oldest] = took


def _tell_ended(following: asyncio.Task[None]) -> None:
    if not following.cancelled() and (error := following.exception()) is not None:
        log.error("the directory is not asked any more", exc_info=error)
