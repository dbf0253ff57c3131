from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cutline.cloud.cluster.autoscaler import Scale, ScalingLimits, WorkerLoad, scale

LIMITS = ScalingLimits(least=1, most=5, grow_after=5.0, shrink_after=60.0)
IDLE = WorkerLoad(queue_seconds=0.0, sessions=0, max_sessions=8)
BUSY = WorkerLoad(queue_seconds=1.0, sessions=4, max_sessions=8)

a_load = st.builds(
    WorkerLoad,
    queue_seconds=st.floats(0.0, 5.0),
    sessions=st.integers(0, 8),
    max_sessions=st.just(8),
)


def run(
    state: Scale,
    loads: list[WorkerLoad],
    seconds: int,
    start: float = 0.0,
    *,
    starting: bool = False,
    homeless: bool = False,
) -> Scale:
    for second in range(seconds):
        state = scale(state, loads, LIMITS, start + second, starting=starting, homeless=homeless)
    return state


def test_it_grows_by_one_once_sessions_waited_long_enough() -> None:
    state = Scale(wanted=2)
    assert run(state, [BUSY] * 2, 5).wanted == 2
    grown = run(state, [BUSY] * 2, 6)
    assert grown.wanted == 3
    assert run(grown, [BUSY] * 2, 60, 6.0, starting=True) == grown  # until the third is there, nothing is known


def test_it_grows_when_places_run_out_though_nobody_waits() -> None:
    """Who is refused is in no queue."""
    full = WorkerLoad(queue_seconds=0.0, sessions=8, max_sessions=8)
    assert run(Scale(wanted=2), [full] * 2, 6).wanted == 3


def test_it_shrinks_after_a_long_quiet_only() -> None:
    assert run(Scale(wanted=2), [IDLE] * 2, 60).wanted == 2
    assert run(Scale(wanted=2), [IDLE] * 2, 62).wanted == 1


def test_a_moment_of_noise_begins_the_wait_anew() -> None:
    state = run(Scale(wanted=2), [BUSY] * 2, 4)
    state = run(state, [IDLE] * 2, 1, start=4.0)
    assert run(state, [BUSY] * 2, 5, start=5.0).wanted == 2


def test_one_that_never_starts_holds_up_neither_growth_nor_shrinking() -> None:
    state = Scale(wanted=2)
    for second in range(400):  # it starts for 2 seconds of 10, and rests for 8
        state = run(state, [BUSY], 1, float(second), starting=second % 10 < 2)
    assert state.wanted == LIMITS.most
    for second in range(400, 1000):
        state = run(state, [IDLE], 1, float(second), starting=second % 10 < 2)
    assert state.wanted == LIMITS.least


def test_where_there_is_no_room_fewer_are_wanted_and_more_again_only_after_a_while() -> None:
    state = run(Scale(wanted=3), [BUSY] * 2, 1, homeless=True)
    assert state.wanted == 2
    tried = int(LIMITS.room_after + LIMITS.grow_after)
    assert run(state, [BUSY] * 2, tried - 1, start=1.0).wanted == 2
    assert run(state, [BUSY] * 2, tried, start=1.0).wanted == 3
    assert run(Scale(wanted=2), [IDLE] * 2, 62, homeless=True).wanted == 1


heard_once = st.tuples(st.lists(a_load, max_size=6), st.floats(0.0, 200.0), st.booleans(), st.booleans())


@given(st.lists(heard_once, max_size=40), st.integers(-3, 9))
def test_whatever_is_heard_it_stays_within_its_limits_and_goes_by_single_steps(
    heard: list[tuple[list[WorkerLoad], float, bool, bool]], wanted: int
) -> None:
    now, state = 0.0, run(Scale(wanted=wanted), [], 1)
    room = -1e9
    for loads, after, starting, homeless in heard:
        now += after
        following = run(state, loads, 1, now, starting=starting, homeless=homeless)
        room = now if homeless else room
        assert LIMITS.least <= following.wanted <= LIMITS.most
        assert abs(following.wanted - state.wanted) <= 1
        if following.wanted > state.wanted:
            assert loads  # never by nobody's word
            assert not starting
            assert now - room >= LIMITS.room_after
        if following.wanted < state.wanted:
            assert homeless or (loads and not starting)
        state = following


@given(st.integers(1, 6), st.lists(st.booleans(), min_size=6, max_size=6), st.floats(0.0, 5.0), st.integers(0, 8))
def test_it_never_freezes(room: int, broken: list[bool], queue: float, sessions: int) -> None:
    """Whatever there is room for and whoever crashes: under load all that has room is used, without it the least is."""
    state = Scale(wanted=LIMITS.least)
    busy = [WorkerLoad(queue_seconds=0.25 + 1e-3 + queue, sessions=sessions, max_sessions=8)]
    for loads, end in ((busy, min(room, LIMITS.most)), ([IDLE], LIMITS.least)):
        for second in range(600):
            placed = min(state.wanted, room)
            serving = max(1, placed - sum(broken[1:placed]))
            homeless = state.wanted > room
            state = scale(state, loads * serving, LIMITS, float(second), starting=False, homeless=homeless)
        assert end <= state.wanted <= end + 1


@given(st.integers(0, 40), st.floats(0.0, 2.0), st.integers(1, 5))
def test_a_steady_load_ends_in_a_steady_number(sessions: int, work: float, wanted: int) -> None:
    """However sessions divide among the workers there are, the number goes one way and then stays: no flapping."""
    state, numbers = Scale(wanted=wanted), [wanted]
    for second in range(1000):
        count = state.wanted
        each = [sessions // count + (index < sessions % count) for index in range(count)]
        loads = [WorkerLoad(queue_seconds=work / count, sessions=min(8, one), max_sessions=8) for one in each]
        state = run(state, loads, 1, float(second))
        numbers.append(state.wanted)
    assert numbers == sorted(numbers) or numbers == sorted(numbers, reverse=True)
    assert len(set(numbers[500:])) == 1
