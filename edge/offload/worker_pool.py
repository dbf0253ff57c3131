"""The workers that an agent may ask, in the order of their cost, and which of them to ask next."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cutline.edge.offload.circuit_breaker import Circuit
from cutline.edge.offload.heartbeat import FIRST_UPLINK, SLOWEST_UPLINK, WorkerSilent
from cutline.edge.offload.recovery import ANSWER_SECONDS, Recovery
from cutline.edge.offload.status import WorkerState
from cutline.errors import (
    CutlineError,
    InputError,
    ModelMismatch,
    VersionMismatch,
    WorkerBusy,
    WorkerError,
    WorkerForgot,
)
from cutline.protos.channel.address import parse_address
from cutline.protos.channel.connection import given_up
from cutline.protos.channel.credentials import NO_KEYS, AgentKeys
from cutline.protos.client import WorkerClient
from cutline.protos.messages import Description

log = logging.getLogger(__name__)

BUSY_SECONDS = 0.2  # that a worker is left alone which refused and did not say for how long
PARTING_SECONDS = 600.0  # that sessions may still go on over a connection that takes no new ones


class Closable(Protocol):
    """What can be closed at once."""

    async def close(self) -> None: ...


@dataclass(slots=True)
class _Known:
    """A worker: the connection to it, if there is one, and what was seen of it."""

    client: WorkerClient | None = None
    circuit: Circuit = field(default_factory=Circuit)
    measured: float | None = None  # bytes a second up
    rtt: float | None = None  # seconds
    queue: float | None = None  # seconds
    uplink: float = FIRST_UPLINK  # what is reckoned with
    described: tuple[Hashable, Description] | None = None  # what it said that it serves, and over which connection
    mismatch: ModelMismatch | None = None  # it was found last to serve another model


class Workers:
    """The workers at `addresses`, the one to ask first at the beginning, each with a circuit breaker.

    A connection is made when a worker is chosen, or stands by, for the first time, by `keys`. One that failed is probed
    in the background until it is back. While it is `offline` none is chosen and none is connected to. Use it from one
    event loop, and close it. Raises InputError for what is no worker's address.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        keys: AgentKeys = NO_KEYS,
        offline: bool = False,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        for address in addresses:
            if parse_address(address)[1] == 0:
                raise InputError(f"the worker's address {address!r} has port 0; give HOST:PORT of one that listens")
        self._keys = keys
        self._offline = offline
        self._clock = clock
        self._chance = chance
        self._known = {address: _Known() for address in addresses}
        self._partings: dict[asyncio.Task[None], Closable] = {}
        self._recovery = Recovery(sleep=sleep)
        self._meetings = Recovery(sleep=sleep)  # with those that stand by
        self.nobody: CutlineError | None = None  # why there are none, where some were to be found

    async def open(self) -> None:
        """Find out which workers there are: those that were given. Raises InputError for keys that do not read."""
        if not self.offline:
            for address in self._known:  # connections belong to the event loop in which they are made
                self._client(address)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Those that may be asked, in the order of cost."""
        return tuple(self._known)

    @property
    def offline(self) -> bool:
        """Whether no worker is asked; if so, every connection is closed at once, and open sessions break."""
        return self._offline

    @offline.setter
    def offline(self, offline: bool) -> None:
        self._offline = offline
        if offline:
            self._disconnect()
        else:
            for address in self._known:
                self._recover(address)

    @property
    def reachable(self) -> bool:
        """Whether there is a worker that may be asked now."""
        return not self._offline and any(one.circuit.lets(self._clock()) for one in self._known.values())

    @property
    def mismatch(self) -> ModelMismatch | None:
        """What is wrong with the configuration where every worker was found to serve another model."""
        found = [one.mismatch for one in self._known.values()]
        if not found or any(one is None for one in found):
            return None
        return ModelMismatch("no worker serves the model that this agent is for: " + "; ".join(map(str, found)))

    @property
    def states(self) -> tuple[WorkerState, ...]:
        """How each of them stands."""
        now = self._clock()
        return tuple(
            WorkerState(
                address=address,
                connected=one.client is not None and one.client.connected,
                breaker=one.circuit.state(now),
                retry_seconds=one.circuit.left(now) or None,
                rtt_ms=None if one.rtt is None else one.rtt * 1e3,
                uplink_mbps=None if one.measured is None else one.measured / 125_000,
                queue_ms=None if one.queue is None else one.queue * 1e3,
            )
            for address, one in self._known.items()
        )

    def choose(self, *, first: str | None = None, but: Collection[str] = ()) -> WorkerClient | None:
        """The worker to ask: the one at the address `first` if that may be asked, else the cheapest, but none in `but`.

        Its end is to be told to `report`, or to `drop` that it was not asked. Raises InputError where the keys no
        longer read.
        """
        chosen = self._next(first, but)
        if chosen is None:
            return None
        client = self._client(chosen)
        self._known[chosen].circuit = self._known[chosen].circuit.asked()
        return client

    def stand_by(self, *, but: Collection[str] = ()) -> str | None:
        """The worker to ask if none in `but` answers, which is got to know meanwhile, in the background.

        It is connected then, and has said what it serves: to go on there costs no more than opening a session.
        """
        chosen = self._next(None, but)
        if chosen is not None and self._described(chosen) is None:
            self._meetings.begin(chosen, lambda: self._meet(chosen), at_once=True)
        return chosen

    def wait(self, *, but: Collection[str] = ()) -> float | None:
        """Seconds until one may be asked that is not in `but`; None if there is none."""
        now = self._clock()
        left = [one.circuit.left(now) for address, one in self._known.items() if address not in but]
        return None if self._offline else min(left, default=None)

    async def describe(self, client: WorkerClient, *, model: str) -> Description:
        """What the worker of `client` serves; it is asked once a connection.

        Raises WorkerError, and ModelMismatch where that is another model than `model`.
        """
        found = self._described(client.address) or await self._ask(client)
        if found.model != model:
            raise ModelMismatch(
                f"the worker at {client.address} serves {found.name[:80]!r} ({found.model[:12]}), "
                f"and this agent is for {model[:12]}; start the worker with the target's bundle, or name another"
            )
        return found

    def failed(self, *, but: Collection[str] = ()) -> bool:
        """Whether all that are not in `but` have failed, so that waiting is for their coming back, and not for room."""
        return all(one.circuit.failures for address, one in self._known.items() if address not in but)

    def report(self, address: str, error: BaseException | None) -> None:
        """What came of asking the worker at `address`: `error`, or None if it did what it was asked."""
        known, now = self._known.get(address), self._clock()
        if known is None:
            return
        known.mismatch = error if isinstance(error, ModelMismatch) else None
        if isinstance(error, WorkerError):
            known.described = None  # who comes back may be another
        match error:
            case None | WorkerForgot() | InputError() | VersionMismatch():  # it may do what others ask
                known.circuit = known.circuit.worked()
            case WorkerBusy():
                wait = error.retry_seconds or BUSY_SECONDS * (1.0 - self._chance() / 2)
                known.circuit = known.circuit.refused(now, wait)
            case WorkerSilent():
                # The connection is of no more use, even if the link comes back: its bytes wait for TCP to try again.
                self._part(known)
                known.circuit = known.circuit.failed(now, chance=self._chance(), least=error.notice)
                # Perhaps the link was only slower than it was taken for, and the heartbeat still stood behind the rest.
                if error.answered or error.ahead > SLOWEST_UPLINK * error.notice:
                    known.uplink = max(known.uplink / 4, SLOWEST_UPLINK)
            case WorkerError():
                known.circuit = known.circuit.failed(now, chance=self._chance())
            case _:
                self.drop(address)
        self._recover(address)

    def drop(self, address: str) -> None:
        """The worker at `address` was given up, or not asked after all: nothing was found out."""
        if (known := self._known.get(address)) is not None:
            known.circuit = known.circuit.dropped()

    def uplink(self, address: str) -> float:
        """What the link to the worker at `address` is taken for, in bytes a second."""
        known = self._known.get(address)
        return FIRST_UPLINK if known is None else known.uplink

    def measured(
        self, address: str, *, uplink: float | None = None, rtt: float | None = None, queue: float | None = None
    ) -> None:
        """Take note that the link to the worker at `address` carries `uplink` bytes a second up.

        A round trip to it takes `rtt` seconds, and a session waits for `queue` seconds there.
        """
        if (known := self._known.get(address)) is None:
            return
        if uplink is not None:
            known.measured = known.uplink = uplink
        known.rtt = known.rtt if rtt is None else rtt
        known.queue = known.queue if queue is None else queue

    def carried(self, address: str, uplink: float) -> None:
        """Take note that the link to the worker at `address` has carried at least so many bytes a second."""
        if (known := self._known.get(address)) is not None:
            known.uplink = max(known.uplink, uplink)

    async def close(self) -> None:
        """Close all connections; sessions still open on them fail."""
        await self._recovery.close()
        await self._meetings.close()
        for known in self._known.values():
            self._part(known)
        partings = dict(self._partings)
        for parting in partings:
            parting.cancel()
        await asyncio.gather(*partings, return_exceptions=True)
        for connection in partings.values():
            await connection.close()

    def _next(self, first: str | None, but: Collection[str]) -> str | None:
        """The worker to ask now; see `choose`."""
        if self._offline:
            return None
        now = self._clock()
        order = self._order([address for address in self._known if address not in but], first)
        return next((one for one in order if self._known[one].circuit.lets(now)), None)

    def _described(self, address: str) -> Description | None:
        """What the worker at `address` said over the connection that stands, None where it was not asked over that."""
        known = self._known.get(address)
        if known is None or known.client is None or known.described is None or not known.client.connected:
            return None
        over, described = known.described
        return described if over == known.client.connection else None

    async def _ask(self, client: WorkerClient) -> Description:
        """Have a worker say what it serves. Raises WorkerError."""
        found = await client.describe()
        if (known := self._known.get(client.address)) is not None and known.client is client:
            known.described = client.connection, found
        return found

    async def _meet(self, address: str) -> bool:
        """Get to know a worker that stands by; that is tried once. One that fails at it says so when it is asked."""
        if self._offline or address not in self._known:
            return False
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._ask(self._client(address))
        except (TimeoutError, CutlineError) as error:
            log.debug("the worker at %s, which stands by, was not got to know: %s", address, error)
        return False

    def _order(self, addresses: Sequence[str], first: str | None) -> Sequence[str]:
        """`addresses` in the order in which to ask, if they may be asked."""
        return sorted(addresses, key=lambda address: address != first)  # stable

    def _have(self, addresses: Sequence[str]) -> None:
        """Have these workers from now on. Sessions that are open on others may end, what was seen of them goes."""
        before, self._known = self._known, {one: self._known.get(one) or _Known() for one in addresses}
        for address, known in before.items():
            if address not in self._known:
                self._part(known)

    def _client(self, address: str) -> WorkerClient:
        known = self._known[address]
        if known.client is None:
            known.client = WorkerClient(address, self._keys)
        return known.client

    def _recover(self, address: str) -> None:
        """Have the worker at `address` probed, if it failed."""
        if self._known[address].circuit.failures and not self._offline:
            self._recovery.begin(address, lambda: self._probe(address))

    async def _probe(self, address: str) -> bool:
        """Ask a worker that failed whether it is back; false where that is known already, or not wanted any more."""
        known = self._known.get(address)
        if known is None or self._offline or not known.circuit.failures:
            return False
        try:
            client = self._client(address)
            async with asyncio.timeout(ANSWER_SECONDS):
                found = await self._ask(client)
            serves = not (found.draining or found.blocked)
        except TimeoutError:
            serves = False
            if known.client is not None and known.client.connected:  # by which nothing comes any more
                self._part(known)
        except WorkerBusy:  # that is an answer
            serves = True
        except CutlineError as error:  # keys that do not read, too: a question that meets the same says it
            log.debug("%s", error)
            serves = False
        except asyncio.CancelledError:
            if given_up():
                raise
            return True  # the connection was closed
        known.circuit = known.circuit.answered() if serves else known.circuit.unanswered()
        return known.circuit.failures > 0

    def _part(self, known: _Known, *, at_once: bool = False) -> None:
        """Close a worker's connection, so that the next session gets a new one: at once, or after its last session."""
        if known.client is not None:
            self._end(known.client, known.client.close(grace=0.0 if at_once else PARTING_SECONDS))
            known.client = None

    def _disconnect(self) -> None:
        """Close every connection at once, also those that were to end with their last session."""
        self._recovery.end()
        self._meetings.end()
        for parting, connection in tuple(self._partings.items()):
            parting.cancel()
            self._end(connection, connection.close())
        for known in self._known.values():
            self._part(known, at_once=True)

    def _end(self, connection: Closable, closing: Coroutine[object, object, None]) -> None:
        """Have a connection closed, which nobody waits for but `close`."""
        parting = asyncio.create_task(closing)
        self._partings[parting] = connection
        parting.add_done_callback(self._partings.pop)
