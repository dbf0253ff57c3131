"""Chains of machines against every way to cut the line."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutline.errors import InputError
from cutline.partitioner.chain import Chain, Machines, fastest, shortest

Spans = tuple[tuple[int, int], ...]


def every_chain(machines: int, layers: int) -> Iterator[Spans]:
    for cuts in itertools.combinations_with_replacement(range(layers + 1), machines - 1):
        yield tuple(itertools.pairwise((0, *cuts, layers)))


def stages(machines: Machines, spans: Spans) -> list[float] | None:
    """Seconds of every stage one after the other; None if a machine has not the memory."""
    where, found = 0, []
    for machine, (start, end) in enumerate(spans):
        if start == end:
            continue
        if sum(machines.layer_bytes[start:end]) > machines.memory[machine]:
            return None
        if machine != where:
            size = machines.boundary_bytes[start]
            found.append(machines.delay[where, machine] + size / machines.rate[where, machine])
        found.append(sum(machines.seconds[machine, start:end]))
        where = machine
    if where != 0:
        found.append(machines.delay[where, 0] + machines.answer_bytes / machines.rate[where, 0])
    return found


@st.composite
def problems(draw: st.DrawFn) -> Machines:
    count, layers = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return Machines(
        seconds=rng.integers(0, 100, (count, layers)).astype(float),
        layer_bytes=rng.integers(0, 5, layers).astype(float),
        memory=rng.integers(0, 20, count).astype(float),
        boundary_bytes=rng.integers(0, 50, layers).astype(float),
        delay=rng.integers(0, 30, (count, count)).astype(float),
        rate=rng.integers(1, 5, (count, count)).astype(float),
        answer_bytes=float(rng.integers(0, 9)),
    )


@pytest.mark.parametrize(("solve", "join"), [(shortest, sum), (fastest, max)])
@given(machines=problems())
def test_no_other_chain_is_better(
    solve: Callable[[Machines], Chain], join: Callable[[list[float]], float], machines: Machines
) -> None:
    count, layers = machines.seconds.shape
    every = [stages(machines, spans) for spans in every_chain(count, layers)]
    possible = [join(found) for found in every if found is not None]
    if not possible:
        with pytest.raises(InputError, match="no chain has the memory"):
            solve(machines)
        return
    chain = solve(machines)
    assert chain.seconds == pytest.approx(min(possible))
    found = stages(machines, chain.spans)
    assert found is not None
    assert join(found) == pytest.approx(chain.seconds)
    assert chain.spans[0][0] == 0
    assert chain.spans[-1][1] == layers
    assert all(before[1] == after[0] for before, after in itertools.pairwise(chain.spans))


def test_a_slow_machine_is_passed_over() -> None:
    machines = Machines(
        seconds=np.array([[5.0, 5.0, 5.0], [90.0, 90.0, 90.0], [1.0, 1.0, 1.0]]),
        layer_bytes=np.ones(3),
        memory=np.array([2.0, 9.0, 9.0]),
        boundary_bytes=np.array([100.0, 10.0, 1.0]),
        delay=np.full((3, 3), 1.0),
        rate=np.full((3, 3), 10.0),
    )
    assert shortest(machines) == Chain(((0, 1), (1, 1), (1, 3)), 5 + 1 + 1 + 2 + 1)
    assert fastest(machines).spans[1][0] == fastest(machines).spans[1][1]


def test_sixty_four_layers_on_eight_machines_are_walked_whole() -> None:
    rng = np.random.default_rng(0)
    machines = Machines(
        seconds=np.tile(rng.random((8, 1)), (1, 64)),
        layer_bytes=np.ones(64),
        memory=np.full(8, 8.0),
        boundary_bytes=np.ones(64),
        delay=np.zeros((8, 8)),
        rate=np.full((8, 8), 1e9),
    )
    assert shortest(machines).spans == tuple((start, start + 8) for start in range(0, 64, 8))
