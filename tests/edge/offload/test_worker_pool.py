from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cutline.edge.offload.circuit_breaker import COOL_FIRST, COOL_MOST
from cutline.edge.offload.heartbeat import FIRST_UPLINK, SLOWEST_UPLINK, WorkerSilent
from cutline.edge.offload.status import Breaker
from cutline.edge.offload.worker_pool import BUSY_SECONDS, Workers
from cutline.errors import InputError, WorkerBusy, WorkerFailed, WorkerForgot, WorkerUnavailable
from cutline.protos.channel.credentials import AgentKeys, open_channel

A, B, C = "127.0.0.1:1001", "127.0.0.1:1002", "127.0.0.1:1003"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def with_workers(check: Callable[[Workers, Clock], Awaitable[None]]) -> None:
    async def run() -> None:
        clock = Clock()
        workers = Workers((A, B, C), clock=clock, chance=lambda: 0.0)
        try:
            await check(workers, clock)
        finally:
            await workers.close()

    asyncio.run(run())


def chosen(workers: Workers, *but: str, first: str | None = None) -> str | None:
    client = workers.choose(first=first, but=but)
    return None if client is None else client.address


def test_the_cheapest_that_works_is_chosen_or_the_one_that_holds_the_conversation() -> None:
    async def check(workers: Workers, clock: Clock) -> None:
        assert workers.addresses == (A, B, C)
        assert chosen(workers) == A
        assert chosen(workers, first=C) == C
        assert chosen(workers, A, B) == C
        workers.report(A, WorkerFailed("broke"))
        workers.report(C, WorkerFailed("broke"))
        assert chosen(workers) == chosen(workers, first=C) == B
        assert chosen(workers, B) is None
        assert workers.wait(but=[B]) == pytest.approx(COOL_FIRST)
        clock.now += COOL_FIRST
        assert chosen(workers) == A, "the one trial"
        assert chosen(workers) == B, "until that is known"
        workers.report(A, None)
        assert chosen(workers) == chosen(workers) == A

    with_workers(check)


def test_what_is_waited_for_is_either_that_one_comes_back_or_that_one_has_room() -> None:
    async def check(workers: Workers, clock: Clock) -> None:
        for address in (A, B, C):
            assert not workers.failed()
            workers.report(address, WorkerUnavailable("gone"))
        assert workers.failed()
        assert not workers.reachable
        assert chosen(workers) is None
        clock.now += COOL_MOST
        for address in (A, B, C):
            workers.report(address, None)
            workers.report(address, WorkerBusy("full", retry_seconds=7.0 if address == A else 9.0))
        assert chosen(workers) is None
        assert not workers.failed()
        assert workers.wait() == pytest.approx(7.0)
        clock.now += 6.9
        assert not workers.reachable
        clock.now += 0.2
        assert chosen(workers) == A
        workers.report(A, WorkerBusy("full"))
        assert workers.wait(but=[B, C]) == pytest.approx(BUSY_SECONDS)

    with_workers(check)


def test_what_is_no_fault_of_a_worker_opens_no_circuit() -> None:
    async def check(workers: Workers, clock: Clock) -> None:
        del clock
        for outcome in (None, WorkerForgot("anew"), InputError("bad"), asyncio.CancelledError(), RuntimeError("bug")):
            assert chosen(workers) == A
            workers.report(A, outcome)
            assert chosen(workers) == A
        workers.report("127.0.0.1:9", WorkerFailed("nobody knows it"))

    with_workers(check)


def test_a_trial_that_is_given_up_lets_another_try() -> None:
    async def check(workers: Workers, clock: Clock) -> None:
        workers.report(A, WorkerFailed("broke"))
        clock.now += COOL_MOST
        assert chosen(workers, B, C) == A
        assert chosen(workers, B, C) is None
        assert workers.states[0].breaker is Breaker.TRYING
        workers.report(A, asyncio.CancelledError())
        assert chosen(workers, B, C) == A

    with_workers(check)


def test_keys_that_no_longer_read_take_no_trial(tmp_path: Path) -> None:
    async def check(workers: Workers, clock: Clock) -> None:
        workers.report(A, WorkerSilent("dead", notice=2.0, answered=False))  # so there will be a new connection
        clock.now += COOL_MOST
        workers._keys = AgentKeys(ca=tmp_path / "gone")
        with pytest.raises(InputError, match="gone"):
            workers.choose()
        workers._keys = AgentKeys()
        assert chosen(workers, B, C) == A

    with_workers(check)


def test_after_silence_there_is_a_new_connection() -> None:
    async def check(workers: Workers, clock: Clock) -> None:
        before = workers.choose()
        workers.measured(A, uplink=1e6)
        workers.report(A, WorkerSilent("dead", notice=2.0, answered=False))
        assert workers.wait(but=[B, C]) == pytest.approx(2.0)
        assert workers.uplink(A) == 1e6
        clock.now += 2.0
        after = workers.choose()
        assert before is not None
        assert after is not None
        assert (before is not after) == (before.address == after.address) == True  # noqa: E712
        workers.report(A, WorkerSilent("dead", notice=2.0, answered=True))
        assert workers.uplink(A) == 1e6 / 4, "perhaps it was slow"
        assert workers.uplink(B) == FIRST_UPLINK

    with_workers(check)


def test_a_link_that_became_slow_is_taken_for_less_where_the_heartbeat_stood_behind_a_lot() -> None:
    async def check(workers: Workers, clock: Clock) -> None:
        del clock
        workers.measured(A, uplink=1e6)
        few = int(SLOWEST_UPLINK)
        workers.report(A, WorkerSilent("dead", notice=2.0, answered=False, ahead=few))
        assert workers.uplink(A) == 1e6, "so few would have come through in the notice, and the answer as well"
        for share in (4, 16, 64):
            workers.report(A, WorkerSilent("slow", notice=2.0, answered=False, ahead=100_000))
            assert workers.uplink(A) == pytest.approx(1e6 / share)

    with_workers(check)


def test_what_is_known_of_the_way_to_a_worker_is_told() -> None:
    async def check(workers: Workers, clock: Clock) -> None:
        del clock
        assert (workers.states[0].rtt_ms, workers.states[0].queue_ms) == (None, None)
        workers.measured(A, rtt=0.05, queue=0.0)
        workers.measured(A, uplink=1e6)
        state = workers.states[0]
        assert (state.rtt_ms, state.uplink_mbps, state.queue_ms) == pytest.approx((50.0, 8.0, 0.0))
        workers.measured("127.0.0.1:9", rtt=1.0)

    with_workers(check)


def test_what_was_carried_raises_what_a_link_is_taken_for_and_what_was_measured_sets_it() -> None:
    async def check(workers: Workers, clock: Clock) -> None:
        workers.carried(A, FIRST_UPLINK / 2)
        assert workers.uplink(A) == FIRST_UPLINK
        workers.carried(A, 3e5)
        assert workers.uplink(A) == 3e5
        assert workers.states[0].uplink_mbps is None, "that is a bound, no measurement"
        workers.measured(A, uplink=2e5)
        assert workers.uplink(A) == 2e5
        assert workers.states[0].uplink_mbps == pytest.approx(1.6)

    with_workers(check)


def test_offline_there_is_not_even_a_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[str]()

    def counted(address: str, keys: AgentKeys) -> object:
        made.append(address)
        return open_channel(address, keys)

    monkeypatch.setattr("cutline.protos.channel.connection.open_channel", counted)

    async def run() -> None:
        workers = Workers((A, B), offline=True)
        assert (workers.choose(), workers.wait(), workers.reachable) == (None, None, False)
        assert made == []
        workers.offline = False
        assert chosen(workers) == A
        assert made == [A]
        workers.offline = True
        assert chosen(workers) is None
        assert not any(state.connected for state in workers.states)
        await workers.close()
        assert made == [A]

    asyncio.run(run())


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize("address", ["", "host", "127.0.0.1:0", "unix:/tmp/x"])
def test_what_is_no_address_is_refused_at_once(address: str, offline: bool) -> None:
    with pytest.raises(InputError, match="HOST:PORT"):
        Workers((A, address), offline=offline)
