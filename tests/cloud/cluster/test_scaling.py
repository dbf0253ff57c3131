from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cutline.cloud.cluster.scaling import Limits, Load, Scale, scale

LIMITS = Limits(least=1, most=5, grow_after=5.0, shrink_after=60.0)
IDLE = Load(queue_seconds=0.0, sessions=0, max_sessions=8)
BUSY = Load(queue_seconds=1.0, sessions=4, max_sessions=8)

a_load = st.builds(
    Load,
    queue_seconds=st.floats(0.0, 5.0),
    sessions=st.integers(0, 8),
    max_sessions=st.just(8),
)


def run(state: Scale, loads: list[Load], seconds: int, start: float = 0.0) -> Scale:
    for second in range(seconds):
        state = scale(state, loads, LIMITS, start + second)
    return state


def test_it_grows_by_one_once_sessions_waited_long_enough() -> None:
    state = Scale(wanted=2)
    assert run(state, [BUSY] * 2, 5).wanted == 2
    assert run(state, [BUSY] * 2, 6).wanted == 3
    assert run(state, [BUSY] * 2, 60).wanted == 3  # the third is on its way: until it is there, nothing is known


def test_it_grows_when_places_run_out_though_nobody_waits() -> None:
    """Who is refused is in no queue."""
    full = Load(queue_seconds=0.0, sessions=8, max_sessions=8)
    assert run(Scale(wanted=2), [full] * 2, 6).wanted == 3


def test_it_shrinks_after_a_long_quiet_only() -> None:
    assert run(Scale(wanted=2), [IDLE] * 2, 60).wanted == 2
    assert run(Scale(wanted=2), [IDLE] * 2, 62).wanted == 1


def test_a_moment_of_noise_begins_the_wait_anew() -> None:
    state = run(Scale(wanted=2), [BUSY] * 2, 4)
    state = scale(state, [IDLE] * 2, LIMITS, 4.0)
    assert run(state, [BUSY] * 2, 5, start=5.0).wanted == 2


@given(st.lists(st.tuples(st.lists(a_load, max_size=6), st.floats(0.0, 200.0)), max_size=40), st.integers(-3, 9))
def test_whatever_is_heard_it_stays_within_its_limits_and_goes_by_single_steps(
    heard: list[tuple[list[Load], float]], wanted: int
) -> None:
    now, state = 0.0, scale(Scale(wanted=wanted), [], LIMITS, 0.0)
    for loads, after in heard:
        now += after
        following = scale(state, loads, LIMITS, now)
        assert LIMITS.least <= following.wanted <= LIMITS.most
        assert abs(following.wanted - state.wanted) <= 1
        if following.wanted != state.wanted:
            assert len(loads) == state.wanted  # only ever by the word of all of them
        state = following


@given(st.integers(0, 40), st.floats(0.0, 2.0), st.integers(1, 5))
def test_a_steady_load_ends_in_a_steady_number(sessions: int, work: float, wanted: int) -> None:
    """However sessions divide among the workers there are, the number goes one way and then stays: no flapping."""
    state, numbers = Scale(wanted=wanted), [wanted]
    for second in range(1000):
        count = state.wanted
        each = [sessions // count + (index < sessions % count) for index in range(count)]
        loads = [Load(queue_seconds=work / count, sessions=min(8, one), max_sessions=8) for one in each]
        state = scale(state, loads, LIMITS, float(second))
        numbers.append(state.wanted)
    assert numbers == sorted(numbers) or numbers == sorted(numbers, reverse=True)
    assert len(set(numbers[500:])) == 1
