"""How much each tenant has of a worker and has used lately, and whether it may have more."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from cutline.errors import WorkerBusy
from cutline.protos.channel.token_file import Quota

WINDOW_SECONDS = 10.0  # over which rates are held: so much may come at once
WAITING_SECONDS = 10.0  # that a tenant which found no room is taken to wait for some
SLOW_SECONDS = 5.0  # after which an opening whose upload still comes may have to give way
# Where nobody knows who calls: with a rate that all had together, one of them could keep out the others.
UNLIMITED = Quota(openings_per_minute=1e9, upload_mb_per_second=1e9)
_MB = 1e6


@dataclass(frozen=True, slots=True)
class Used:
    """What was used of a rate: `amount` at the time `at`, and less since."""

    amount: float = 0.0
    at: float = 0.0

    def plus(self, amount: float, rate: float, now: float) -> Used:
        """After `amount` more."""
        return Used(max(0.0, self.amount - (now - self.at) * rate) + amount, now)

    def wait(self, rate: float, now: float) -> float:
        """Seconds until no more is used than a window gives."""
        return max(0.0, self.plus(0.0, rate, now).amount / rate - WINDOW_SECONDS)


def may_have(held: Mapping[str, int], waiting: AbstractSet[str], places: int, tenant: str) -> bool:
    """Whether `tenant` may have one more place, by who holds how many and who waits for one.

    Where others wait it has an equal share at most; where nobody does, all there are.
    """
    others = waiting - {tenant}
    everybody = {tenant, *others, *(one for one, count in held.items() if count)}
    return not others or held.get(tenant, 0) < max(1, places // len(everybody))


@dataclass(slots=True, eq=False)
class Arrival:
    """An opening of `tenant` that is read and prepared, begun `since`."""

    tenant: str
    since: float
    gave_way: bool = False
    _limit: asyncio.Timeout | None = None

    @contextlib.asynccontextmanager
    async def uploading(self) -> AsyncIterator[None]:
        """While its upload comes it may have to give way. Raises WorkerBusy then."""
        try:
            async with asyncio.timeout(None) as self._limit:
                yield
        except TimeoutError:
            if not self.gave_way:
                raise
        finally:
            self._limit = None
        if self.gave_way:
            raise _busy("others wait for a place, and your session took long to open", 1.0)

    def is_slow(self, now: float) -> bool:
        """Whether its upload takes long."""
        return self._limit is not None and now - self.since >= SLOW_SECONDS

    def give_way(self) -> None:
        """Its place is another's now."""
        self.gave_way = True
        if self._limit is not None:
            self._limit.reschedule(0.0)


def giving_way(arrivals: Sequence[Arrival], tenant: str, now: float) -> Arrival | None:
    """Which of `arrivals`, the oldest first, gives way to one of `tenant`: a slow one of a tenant that has more.

    That is two more at least: with one more the two would only change places.
    """
    held = Counter(one.tenant for one in arrivals)
    slow = [one for one in arrivals if one.is_slow(now) and held[one.tenant] > held[tenant] + 1]
    return max(slow, key=lambda one: held[one.tenant], default=None)  # the oldest of those who have most


class Shares:
    """What the tenants of one worker with so many `places` have; `limits` says what each may. For one event loop."""

    def __init__(
        self, limits: Callable[[str], Quota], *, places: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits
        self._places = places
        self._clock = clock
        self._held: Counter[str] = Counter()
        self._arriving: list[Arrival] = []  # of those, what is read and prepared, the oldest first
        self._openings: dict[str, Used] = {}
        self._uploads: dict[str, Used] = {}
        self._waiting: dict[str, float] = {}  # until when

    @contextlib.contextmanager
    def session(self, tenant: str) -> Iterator[None]:
        """A place for a session of `tenant`. Raises WorkerBusy, which says when to try again."""
        limits, now = self._limits(tenant), self._clock()
        rate = limits.openings_per_minute / 60
        if wait := self._openings.get(tenant, Used()).wait(rate, now):
            raise _busy(f"over {limits.openings_per_minute:g} sessions a minute were opened", wait)
        if self.over(tenant):
            raise self.too_much(tenant)
        if limits.sessions is not None and self._held[tenant] >= limits.sessions:
            raise _busy(f"{limits.sessions} sessions are open, as many as you may have", 1.0)
        if tenant and self._held[tenant] >= 2 * self._places:  # as many again may wait, or be on their way out
            raise _busy(f"{self._held[tenant]} of your sessions are here, and there are {self._places} places", 1.0)
        self._check_share(self._held, tenant)
        self._openings[tenant] = self._openings.get(tenant, Used()).plus(1.0, rate, now)
        self._held[tenant] += 1
        try:
            yield
        finally:
            self._held[tenant] -= 1

    @contextlib.contextmanager
    def arrival(self, tenant: str) -> Iterator[Arrival]:
        """A place among the openings that are read and prepared, as many as those of sessions. Raises WorkerBusy."""
        self._check_share(Counter(one.tenant for one in self._arriving), tenant)
        if len(self._arriving) >= self._places and not self._make_room(tenant):
            self.found_room(tenant, found=False)
            raise _busy(f"{self._places} sessions are being opened on this worker", 1.0)
        self.found_room(tenant, found=True)
        self._arriving.append(one := Arrival(tenant, self._clock()))
        try:
            yield one
        finally:
            if not one.gave_way:
                self._arriving.remove(one)

    def _make_room(self, tenant: str) -> bool:
        if (slow := giving_way(self._arriving, tenant, self._clock())) is None:
            return False
        self._arriving.remove(slow)
        self.found_room(slow.tenant, found=False)
        slow.give_way()
        return True

    def _check_share(self, held: Mapping[str, int], tenant: str) -> None:
        now = self._clock()
        waiting = {one for one, until in self._waiting.items() if until > now}
        if not may_have(held, waiting, self._places, tenant):
            raise _busy("others wait for a place, and you have your share", 1.0)

    def found_room(self, tenant: str, *, found: bool) -> None:
        """Whether the worker had room for `tenant`: one that it had none for is taken to wait."""
        if found:
            self._waiting.pop(tenant, None)
        else:
            self._waiting[tenant] = self._clock() + WAITING_SECONDS

    def charge(self, tenant: str, size: int) -> None:
        """So many bytes came from `tenant`."""
        rate = self._limits(tenant).upload_mb_per_second * _MB
        self._uploads[tenant] = self._uploads.get(tenant, Used()).plus(size, rate, self._clock())

    def over(self, tenant: str) -> float:
        """Seconds that nothing more should come from `tenant`, for it sent more than it may."""
        rate = self._limits(tenant).upload_mb_per_second * _MB
        return self._uploads.get(tenant, Used()).wait(rate, self._clock())

    def too_much(self, tenant: str) -> WorkerBusy:
        """What `tenant` is told that sent more than it may."""
        most = self._limits(tenant).upload_mb_per_second
        return _busy(f"over {most:g} MB a second came", max(1.0, self.over(tenant)))


def _busy(why: str, seconds: float) -> WorkerBusy:
    return WorkerBusy(f"{why}; try again in {seconds:.1f} seconds", retry_seconds=seconds)
