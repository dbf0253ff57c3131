from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cutline.cloud.access.quota import (
    UNLIMITED,
    WAITING_SECONDS,
    WINDOW_SECONDS,
    Arrival,
    RateUsage,
    Shares,
    to_evict,
    within_share,
)
from cutline.errors import WorkerBusy
from cutline.protos.channel.token_file import Quota

TENANTS = ["a", "b", "c"]
SLOW = 5.0  # seconds after which an opening may be evicted


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(
    st.floats(0.01, 1e6),
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1e6)), max_size=30),
)
def test_a_rate_holds_over_every_stretch_of_time(rate: float, tries: list[tuple[float, float]]) -> None:
    """Who adds only while no wait is said gets the rate, a window's worth, and the last piece, over any stretch."""
    used, now, taken = RateUsage(), 0.0, list[tuple[float, float]]()
    for pause, amount in tries:
        now += pause
        if used.wait(rate, now) == 0.0:
            used = used.plus(amount, rate, now)
            taken.append((now, amount))
        else:
            assert used.wait(rate, now + used.wait(rate, now) + 1e-3) == 0.0
    for first, (began, _) in enumerate(taken):
        for last in range(first, len(taken)):
            amounts = [amount for _, amount in taken[first : last + 1]]
            most = rate * (taken[last][0] - began + WINDOW_SECONDS)
            assert sum(amounts[:-1]) <= most * (1 + 1e-9) + 1e-6


@given(
    st.dictionaries(st.sampled_from(TENANTS), st.integers(0, 12)),
    st.sets(st.sampled_from(TENANTS)),
    st.integers(1, 12),
    st.sampled_from(TENANTS),
)
def test_who_waits_gets_a_share(held: dict[str, int], waiting: set[str], places: int, tenant: str) -> None:
    allowed = within_share(held, waiting, places, tenant)
    if not waiting - {tenant}:
        assert allowed, "with nobody waiting all places may be one's"
    elif not held.get(tenant):
        assert allowed, "one that has none is never kept from its first"
    else:
        rivals = len({tenant, *waiting, *(one for one in held if held[one])})
        assert allowed == (held[tenant] < max(1, places // rivals))


def test_one_tenant_has_all_until_another_comes() -> None:
    clock = Clock()
    shares = Shares(lambda _: Quota(), places=4, clock=clock)
    with contextlib.ExitStack() as stack:
        first = [stack.enter_context(contextlib.ExitStack()) for _ in range(4)]
        for one in first:
            one.enter_context(shares.session("a"))
        shares.found_room("b", found=False)
        first[0].close()
        with pytest.raises(WorkerBusy, match="others wait") as refused, shares.session("a"):
            pass
        assert refused.value.retry_seconds > 0
        stack.enter_context(shares.session("b"))
        shares.found_room("b", found=True)
        first[1].close()
        first[1].enter_context(shares.session("a"))
        shares.found_room("b", found=False)  # and left
        first[2].close()
        with pytest.raises(WorkerBusy), shares.session("a"):
            pass
        clock.now += WAITING_SECONDS + 1
        stack.enter_context(shares.session("a"))


def test_limits_of_a_tenant_say_when_to_try_again() -> None:
    clock = Clock()
    limits = {
        "few": Quota(sessions=1),
        "slow": Quota(openings_per_minute=60),
        "thin": Quota(upload_mb_per_second=1.0),
        "": UNLIMITED,
    }
    shares = Shares(limits.__getitem__, places=100, clock=clock)
    with shares.session("few"), pytest.raises(WorkerBusy, match="1 sessions"), shares.session("few"):
        pass
    opened = 0
    with pytest.raises(WorkerBusy, match="a minute") as refused:  # noqa: PT012
        while opened < 100:
            with shares.session("slow"):
                opened += 1
    assert opened == WINDOW_SECONDS + 1
    clock.now += refused.value.retry_seconds + 1e-6
    with shares.session("slow"):
        pass
    shares.charge("thin", 11_000_000)
    assert shares.over("thin") == pytest.approx(1.0)
    with pytest.raises(WorkerBusy, match="MB a second"), shares.session("thin"):
        pass
    shares.charge("", 10**12)
    for _ in range(10_000):
        with shares.session(""):
            pass


@pytest.mark.threat("floods")
def test_who_opens_slowly_has_not_all_openings() -> None:
    """One that found no room for its opening is given the next that ends, and until then is taken to wait."""
    shares = Shares(lambda _: Quota(), places=2, clock=Clock())
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(contextlib.ExitStack()) for _ in range(2)]
        for one in slow:
            one.enter_context(shares.arrival("a"))
        with pytest.raises(WorkerBusy, match="being opened") as refused, shares.arrival("b"):
            pass
        assert refused.value.retry_seconds > 0
        slow[0].close()
        for many in (shares.arrival, shares.session):
            with shares.session("a"), pytest.raises(WorkerBusy, match="others wait"), many("a"):
                pass
        with shares.arrival("b"):
            pass
        slow[0].enter_context(shares.arrival("a"))


@pytest.mark.threat("floods")
def test_slow_uploads_of_who_has_most_give_way() -> None:
    """Those alone that came long ago, and only until the others have nearly as many."""
    clock, left = Clock(), list[tuple[str, int]]()
    shares = Shares(lambda _: UNLIMITED, places=4, clock=clock)

    async def upload(tenant: str, index: int) -> None:
        with shares.arrival(tenant) as place:
            try:
                async with place.uploading():
                    await asyncio.sleep(60)
            except WorkerBusy:
                left.append((tenant, index))

    async def come(tenant: str, index: int) -> asyncio.Task[None]:
        task = asyncio.create_task(upload(tenant, index))
        for _ in range(5):
            await asyncio.sleep(0)
        return task

    async def main() -> None:
        tasks = [await come("a", index) for index in range(4)]
        refused = await come("b", 0)
        with pytest.raises(WorkerBusy, match="being opened"):
            await refused
        assert left == [], "they have only begun"
        clock.now += SLOW
        tasks += [await come("b", 0), await come("b", 1)]
        assert left == [("a", 0), ("a", 1)]
        clock.now += SLOW
        for tenant in ("a", "b"):  # neither has two more than the other
            with pytest.raises(WorkerBusy):
                await (await come(tenant, 9))
        assert left == [("a", 0), ("a", 1)]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    asyncio.run(main())
    assert not shares._arriving


def test_what_is_prepared_does_not_give_way() -> None:
    clock = Clock()
    shares = Shares(lambda _: UNLIMITED, places=2, clock=clock)

    async def main() -> None:
        with shares.arrival("a") as one, shares.arrival("a") as other:
            for place in (one, other):
                async with place.uploading():
                    pass
            clock.now += 10 * SLOW
            with pytest.raises(WorkerBusy, match="being opened"), shares.arrival("b"):
                pass
            assert {one.evicted, other.evicted} == {False}

    asyncio.run(main())


class Slow(Arrival):
    """One whose upload takes long."""

    def is_slow(self, now: float) -> bool:
        return True


@settings(deadline=None)
@given(st.lists(st.sampled_from(TENANTS), max_size=12), st.lists(st.sampled_from(TENANTS), max_size=40))
def test_giving_way_comes_to_an_end(holders: Sequence[str], comers: Sequence[str]) -> None:
    """Each time the two tenants are nearer to each other than before, so nobody is put out for ever."""
    arrivals: list[Arrival] = [Slow(one, 0.0, SLOW) for one in holders]
    for tenant in comers:
        held = Counter(one.tenant for one in arrivals)
        one = to_evict(arrivals, tenant, 1.0)
        if one is None:
            assert max(held.values(), default=0) <= held[tenant] + 1
            continue
        assert held[one.tenant] == max(held.values())
        assert one is next(first for first in arrivals if first.tenant == one.tenant)
        arrivals.remove(one)
        arrivals.append(Slow(tenant, 0.0, SLOW))
        after = Counter(one.tenant for one in arrivals)
        assert sum(count**2 for count in after.values()) < sum(count**2 for count in held.values())


@pytest.mark.threat("floods")
def test_streams_of_one_tenant_are_few_more_than_places() -> None:
    shares = Shares(lambda _: UNLIMITED, places=3, clock=Clock())
    with contextlib.ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(shares.session("a"))
        with pytest.raises(WorkerBusy, match="3 places"), shares.session("a"):
            pass
        stack.enter_context(shares.session("b"))


class Tenants(RuleBasedStateMachine):
    """Sessions come and go, and nobody ever waits behind one that has more than its share for good."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.shares = Shares(lambda _: UNLIMITED, places=6, clock=self.clock)
        self.open: list[tuple[str, contextlib.ExitStack]] = []

    @rule(tenant=st.sampled_from(TENANTS))
    def come(self, tenant: str) -> None:
        stack = contextlib.ExitStack()
        held = Counter(one for one, _ in self.open)
        try:
            stack.enter_context(self.shares.session(tenant))
        except WorkerBusy:
            assert held[tenant] >= 6 // len(TENANTS)
            return
        found = len(self.open) < 6
        self.shares.found_room(tenant, found=found)
        if found:
            self.open.append((tenant, stack))
        else:
            stack.close()

    @rule(index=st.integers(0, 5), seconds=st.floats(0, 20))
    def leave(self, index: int, seconds: float) -> None:
        self.clock.now += seconds
        if index < len(self.open):
            self.open.pop(index)[1].close()

    @invariant()
    def counts(self) -> None:
        assert {one: count for one, count in self.shares._held.items() if count} == dict(
            Counter(one for one, _ in self.open)
        )


Tenants.TestCase.settings = settings(max_examples=30, stateful_step_count=30)
test_tenants = Tenants.TestCase
