"""Quotas of a worker's tenants: sessions, openings a minute and upload rate, shared fairly."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from cutline.core.request import Priority
from cutline.errors import WorkerBusy
from cutline.protos.channel.token_file import Quota

WINDOW_SECONDS = 10.0  # over which rates are measured: a burst may use all of it at once
WAITING_SECONDS = 10.0  # after a refusal during which a tenant still counts as waiting
# For anonymous callers: under one common rate any of them could keep out the others.
UNLIMITED = Quota(openings_per_minute=1e9, upload_mb_per_second=1e9)
_MB = 1e6


@dataclass(frozen=True, slots=True)
class RateUsage:
    """Usage of a rate, as a leaky bucket: it held `amount` at time `at` (seconds) and drains at the rate."""

    amount: float = 0.0
    at: float = 0.0

    def plus(self, amount: float, rate: float, now: float) -> RateUsage:
        """The usage after `amount` more."""
        return RateUsage(max(0.0, self.amount - (now - self.at) * rate) + amount, now)

    def wait(self, rate: float, now: float) -> float:
        """Seconds until the usage is within what a window allows."""
        return max(0.0, self.plus(0.0, rate, now).amount / rate - WINDOW_SECONDS)


def within_share(held: Mapping[str, int], waiting: AbstractSet[str], places: int, tenant: str) -> bool:
    """Whether `tenant` may take one more of the `places`, given the tenants that hold and that wait for places.

    It may take any free place while no other tenant waits, else only up to an equal share.
    """
    others = waiting - {tenant}
    tenants = {tenant, *others, *(holder for holder, count in held.items() if count)}
    return not others or held.get(tenant, 0) < max(1, places // len(tenants))


@dataclass(slots=True, eq=False)
class Arrival:
    """A session of `tenant` that is being received and prepared since the time `since`."""

    tenant: str
    since: float
    slow_seconds: float
    evicted: bool = False
    _limit: asyncio.Timeout | None = None

    @contextlib.asynccontextmanager
    async def uploading(self) -> AsyncIterator[None]:
        """Within this context its upload may be evicted. Raises WorkerBusy if it is."""
        try:
            async with asyncio.timeout(None) as self._limit:
                yield
        except TimeoutError:
            if not self.evicted:
                raise
        finally:
            self._limit = None
        if self.evicted:
            raise _busy("others wait for a place, and your session took long to open", 1.0)

    def is_slow(self, now: float) -> bool:
        """Whether it still uploads, and began so long ago that it may be evicted for another tenant's."""
        return self._limit is not None and now - self.since >= self.slow_seconds

    def evict(self) -> None:
        """Evict it, in favour of another."""
        self.evicted = True
        if self._limit is not None:
            self._limit.reschedule(0.0)


def to_evict(arrivals: Sequence[Arrival], tenant: str, now: float) -> Arrival | None:
    """Which of `arrivals`, given oldest first, to evict for one of `tenant`; None if no one may be.

    It is a slow one of a tenant with at least two more than `tenant` has; for one more they would only swap.
    """
    held = Counter(arrival.tenant for arrival in arrivals)
    slow = [arrival for arrival in arrivals if arrival.is_slow(now) and held[arrival.tenant] > held[tenant] + 1]
    return max(slow, key=lambda arrival: held[arrival.tenant], default=None)  # the oldest of the largest holder


class Shares:
    """Enforces the quotas that `limits` gives for tenants, on a worker of so many `places`. For one event loop."""

    def __init__(
        self,
        limits: Callable[[str], Quota],
        *,
        places: int,
        slow_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """After `slow_seconds` an opening that still uploads may be evicted for another tenant's."""
        self._limits = limits
        self._places = places
        self._slow_seconds = slow_seconds
        self._clock = clock
        self._held: Counter[str] = Counter()
        self._arriving: list[Arrival] = []  # oldest first
        self._openings: dict[str, RateUsage] = {}
        self._uploads: dict[str, RateUsage] = {}
        self._waiting: dict[str, float] = {}  # tenants, and until when each counts as waiting

    def keeps(self, tenant: str) -> bool:
        """Whether answers to `tenant` may be kept."""
        return bool(tenant) and self._limits(tenant).journal

    @contextlib.contextmanager
    def session(self, tenant: str) -> Iterator[None]:
        """Hold a place for a session of `tenant`. Raises WorkerBusy with the time to try again."""
        limits, now = self._limits(tenant), self._clock()
        rate = limits.openings_per_minute / 60
        if wait := self._openings.get(tenant, RateUsage()).wait(rate, now):
            raise _busy(f"over {limits.openings_per_minute:g} sessions a minute were opened", wait)
        if self.over(tenant):
            raise self.too_much(tenant)
        if limits.sessions is not None and self._held[tenant] >= limits.sessions:
            raise _busy(f"{limits.sessions} sessions are open, as many as you may have", 1.0)
        if tenant and self._held[tenant] >= 2 * self._places:  # as many again may be waiting or ending
            raise _busy(f"{self._held[tenant]} of your sessions are here, and there are {self._places} places", 1.0)
        self._check_share(self._held, tenant)
        self._openings[tenant] = self._openings.get(tenant, RateUsage()).plus(1.0, rate, now)
        self._held[tenant] += 1
        try:
            yield
        finally:
            self._held[tenant] -= 1

    @contextlib.contextmanager
    def arrival(self, tenant: str) -> Iterator[Arrival]:
        """Hold a place for receiving and preparing a session, of as many as for sessions. Raises WorkerBusy."""
        self._check_share(Counter(arrival.tenant for arrival in self._arriving), tenant)
        if len(self._arriving) >= self._places and not self._make_room(tenant):
            self.found_room(tenant, found=False)
            raise _busy(f"{self._places} sessions are being opened on this worker", 1.0)
        self.found_room(tenant, found=True)
        self._arriving.append(arrival := Arrival(tenant, self._clock(), self._slow_seconds))
        try:
            yield arrival
        finally:
            if not arrival.evicted:
                self._arriving.remove(arrival)

    def _make_room(self, tenant: str) -> bool:
        if (slow := to_evict(self._arriving, tenant, self._clock())) is None:
            return False
        self._arriving.remove(slow)
        self.found_room(slow.tenant, found=False)
        slow.evict()
        return True

    def _check_share(self, held: Mapping[str, int], tenant: str) -> None:
        now = self._clock()
        waiting = {name for name, until in self._waiting.items() if until > now}
        if not within_share(held, waiting, self._places, tenant):
            raise _busy("others wait for a place, and you have your share", 1.0)

    def found_room(self, tenant: str, *, found: bool) -> None:
        """Note whether the worker had room for `tenant`. If not, the tenant counts as waiting for WAITING_SECONDS."""
        if found:
            self._waiting.pop(tenant, None)
        else:
            self._waiting[tenant] = self._clock() + WAITING_SECONDS

    def highest(self, tenant: str) -> Priority:
        """The highest priority that sessions of `tenant` may have."""
        return self._limits(tenant).priority

    def charge(self, tenant: str, size: int) -> None:
        """Count an upload of `size` bytes by `tenant`."""
        rate = self._limits(tenant).upload_mb_per_second * _MB
        self._uploads[tenant] = self._uploads.get(tenant, RateUsage()).plus(size, rate, self._clock())

    def over(self, tenant: str) -> float:
        """Seconds until `tenant` is within its upload rate again; 0 if it is."""
        rate = self._limits(tenant).upload_mb_per_second * _MB
        return self._uploads.get(tenant, RateUsage()).wait(rate, self._clock())

    def too_much(self, tenant: str) -> WorkerBusy:
        """The error for a `tenant` over its upload rate."""
        most = self._limits(tenant).upload_mb_per_second
        return _busy(f"over {most:g} MB a second came", max(1.0, self.over(tenant)))


def _busy(why: str, seconds: float) -> WorkerBusy:
    return WorkerBusy(f"{why}; try again in {seconds:.1f} seconds", retry_seconds=seconds)
