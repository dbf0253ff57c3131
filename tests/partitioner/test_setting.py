from __future__ import annotations

from dataclasses import astuple
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutline.models.costs import request_sizes
from cutline.partitioner.setting import (
    REFERENCE_MESSAGE_SECONDS,
    Asked,
    Overheads,
    Setting,
    drafter_sizes,
    own_grids,
)

seconds = st.floats(1e-6, 1e-1)


def test_where_profiles_say_nothing_overheads_are_those_that_were_measured(made: Any) -> None:
    assert astuple(Overheads.between(made.profile(), made.profile())) == pytest.approx(astuple(Overheads()))


@given(times=st.floats(0.1, 50))
def test_machines_that_are_equally_slow_take_so_many_times_longer(made: Any, times: float) -> None:
    slow = made.profile(message_seconds=REFERENCE_MESSAGE_SECONDS * times)
    both, known = Overheads.between(slow, slow), Overheads()
    for name in ("request", "session", "closing", "message", "scheduling"):
        assert getattr(both, name) == pytest.approx(getattr(known, name) * times)
    assert both.packing == known.packing  # a share, not a time


@given(here=seconds, there=seconds, slower=st.floats(1.01, 10))
def test_each_machine_answers_for_its_own_share(made: Any, here: float, there: float, slower: float) -> None:
    def between(edge: float, cloud: float) -> Overheads:
        return Overheads.between(made.profile(message_seconds=edge), made.profile(message_seconds=cloud))

    before, device, worker = between(here, there), between(here * slower, there), between(here, there * slower)
    assert device.request > before.request == worker.request
    assert device.scheduling == before.scheduling < worker.scheduling
    for name in ("session", "closing", "message"):
        assert getattr(before, name) < min(getattr(device, name), getattr(worker, name))


def test_a_drafter_of_its_own_images_reads_a_prompt_of_its_own_length(made: Any) -> None:
    ours, theirs = made.manifest("drafter", tile=32), made.manifest("target", tile=64)
    grids = own_grids(ours, theirs, [(500, 400)])
    assert grids == (ours.family.grid((500, 400)),)
    asked = Asked(grids=((0, 0),), image_bytes=1, prompt_tokens=60, answer_tokens=5, drafter_grids=grids)
    sizes = drafter_sizes(Setting(drafter=ours, target=theirs, edge=made.profile(), cloud=made.profile()), asked)
    words = 60 - theirs.family.tokens((0, 0))
    assert sizes.image_tokens == ours.family.tokens(grids[0]) != theirs.family.tokens((0, 0))
    assert (sizes.tokens, sizes.patches) == (words + sizes.image_tokens, ours.family.patches(grids[0]))


def test_a_drafter_that_is_alike_reads_its_targets_prompt(made: Any) -> None:
    ours, theirs = made.manifest("drafter", width=32), made.manifest("target")
    assert own_grids(ours, theirs, [(500, 400)]) is None
    asked = Asked(grids=((0, 0),), image_bytes=1, prompt_tokens=60, answer_tokens=5)
    sizes = drafter_sizes(Setting(drafter=ours, target=theirs, edge=made.profile(), cloud=made.profile()), asked)
    assert sizes == request_sizes(ours, asked.grids, 60)
