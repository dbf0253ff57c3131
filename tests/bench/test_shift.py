"""The shift suite: digits by other hands, what an oracle keeps, and what becomes of a replay."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from cutline.bench.other_hands import DIGITS, SIDE, scans_in
from cutline.bench.shift import COMPARED, Replay, Seen, replay, with_audits
from cutline.testing.worker import keeps_from

GATE = keeps_from(0.5)


def seen(agreed: list[bool], *, sure: list[float] | None = None, strange: bool = False) -> Seen:
    count = len(agreed)
    return Seen(
        kept=np.ones(count, bool),
        strange=np.full(count, strange),
        sure=np.array(sure or [0.9] * count),
        agreed=np.array(agreed),
    )


def test_digits_of_others_are_as_large_as_the_demos(tmp_path: Path) -> None:
    """Each is cut out where there is ink, whatever its place in the scan."""
    for value in range(DIGITS):
        scans = np.zeros((2, SIDE, SIDE))
        scans[0, 4:20, 8:16] = scans[1, 10:26, 1:9] = 1.0
        (tmp_path / f"{value}.json").write_text(json.dumps({"data": scans.reshape(-1).tolist()}))
    found = scans_in(tmp_path)
    assert found.values.tolist() == [value for value in range(DIGITS) for _ in range(2)]
    assert np.array_equal(found.ink, np.ones((2 * DIGITS, 8, 8), np.float32))


def test_an_oracle_keeps_down_to_the_loosest_threshold_that_holds() -> None:
    world = seen([True] * 6 + [False] * 2 + [True] * 2, sure=[0.9] * 6 + [0.7] * 2 + [0.6] * 2)
    assert world.oracle(0.2) == 1.0, "two of ten differ"
    assert world.oracle(0.1) == 0.6
    assert seen([False] * 4).oracle(0.1) == 0.0


def test_where_all_agree_all_is_kept_and_where_none_does_five_audits_end_it() -> None:
    good = replay(seen([True] * 10), GATE, audit=1.0, answers=500, seed=0)
    assert (good.kept, good.wrong, good.audited, good.shut) == (500, 0, 500, False)
    assert (good.later, good.later_kept) == (500 - COMPARED, 500 - COMPARED)
    bad = replay(seen([False] * 10, sure=[1.0] * 10), GATE, audit=1.0, answers=500, seed=0)
    assert (bad.kept, bad.wrong, bad.audited, bad.shut) == (5, 5, 5, True)
    apart = replay(seen([False] * 10, strange=True), GATE, audit=1.0, answers=500, seed=0, apart=True)
    assert (apart.kept, apart.audited) == (0, 0)


def test_a_replay_is_within_the_promise_by_what_it_kept_later() -> None:
    within = Replay(answers=1000, kept=900, wrong=60, later=800, later_kept=700, later_wrong=35, audited=90)
    beyond = Replay(answers=1000, kept=900, wrong=200, later=800, later_kept=700, later_wrong=140, audited=90)
    told = with_audits([within, beyond], 0.05)
    assert told == ["90.0%", "14.4%", "87.5%", "12.5%", "50.0%", "50.0%", "0.0%", "90"]
