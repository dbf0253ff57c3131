from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutline.edge.offload.circuit_breaker import COOL_FIRST, COOL_MOST, Circuit, cool_down
from cutline.edge.offload.status import Breaker

chances = st.floats(0.0, 1.0)
events = st.lists(
    st.tuples(
        st.sampled_from(["asked", "dropped", "worked", "failed", "refused", "answered", "unanswered"]),
        st.floats(0.0, 40.0),  # seconds that pass before it
        chances,
    ),
    max_size=40,
)


def after(circuit: Circuit, event: str, now: float, chance: float) -> Circuit:
    match event:
        case "failed":
            return circuit.failed(now, chance=chance)
        case "refused":
            return circuit.refused(now, 3.0)
        case "asked":
            return circuit.asked()
        case "dropped":
            return circuit.dropped()
        case "answered":
            return circuit.answered()
        case "unanswered":
            return circuit.unanswered()
    return circuit.worked()


@given(events)
def test_whatever_happens_it_lets_one_through_after_a_while_and_only_one_until_it_is_known(
    happened: list[tuple[str, float, float]],
) -> None:
    circuit, now = Circuit(), 0.0
    for event, passed, chance in happened:
        now += passed
        before, circuit = circuit, after(circuit, event, now, chance)
        assert circuit.left(now) <= max(COOL_MOST, 3.0, before.left(now))
        assert circuit.lets(now) == (circuit.left(now) == 0.0 and not circuit.trial)
        assert (circuit.state(now) is Breaker.CLOSED) == (circuit.failures == 0 and circuit.left(now) == 0.0)
        later = now + circuit.left(now)
        assert circuit.dropped().lets(later), "the cool-down is over"
        asked = circuit.dropped().asked()
        assert asked.lets(later) == (circuit.failures == 0), "after a failure there is one trial"
        if event == "failed":
            assert not circuit.lets(now)
            assert circuit.failures == max(1, before.failures + (before.left(now) == 0.0))
        elif event == "worked":
            assert circuit == Circuit()
        elif event == "answered" and before.failures and not before.doubted:
            assert circuit.state(now) is Breaker.CLOSED, "however long it was to rest"
        else:
            assert circuit.failures == before.failures


@given(st.integers(1, 100), chances)
def test_cool_downs_grow_up_to_a_limit_and_differ_by_chance(failures: int, chance: float) -> None:
    wait, longest = cool_down(failures, chance=chance), cool_down(failures, chance=0.0)
    assert longest / 2 <= wait <= longest <= COOL_MOST
    assert cool_down(failures + 1, chance=chance) >= wait
    assert cool_down(1, chance=0.0) == COOL_FIRST
    assert cool_down(100, chance=0.0) == COOL_MOST


def test_sessions_that_break_together_are_one_failure() -> None:
    circuit = Circuit()
    for _ in range(5):
        circuit = circuit.failed(10.0, chance=0.0)
    assert circuit == Circuit(failures=1, until=10.0 + COOL_FIRST)
    assert circuit.failed(10.1, chance=0.0, least=2.0).until == pytest.approx(12.1)


def test_who_asks_to_be_left_alone_has_not_failed() -> None:
    circuit = Circuit().refused(10.0, 2.0)
    assert (circuit.lets(11.9), circuit.lets(12.0), circuit.failures) == (False, True, 0)
    assert not circuit.asked().trial, "several may come then"


def test_probes_whose_word_proved_wrong_count_again_after_one_that_failed() -> None:
    circuit = Circuit().failed(10.0, chance=0.0).answered()
    assert circuit.lets(10.0)
    circuit = circuit.failed(10.1, chance=0.0)
    assert circuit.answered() == circuit, "it answers probes, and fails at questions"
    assert not circuit.answered().lets(10.1)
    assert circuit.unanswered().answered().lets(10.1), "it was away, and is back"
    again = Circuit().failed(10.0, chance=0.0).answered().worked().failed(11.0, chance=0.0)
    assert again.answered().lets(11.0), "it had answered a question in between"
