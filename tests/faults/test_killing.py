"""What is told of killed links: how many were answered, noticed and gone on from within what that may take."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from cutline.bench.faults.killing import RESET_SECONDS, Killed, report

NOTICE, RTT, PREFILL = 0.5, 0.04, 0.02
RESET = Killed(True, False, 0.01, RESET_SECONDS, PREFILL + 1.5 * RTT, PREFILL, PREFILL + 2 * RTT)
SILENT = replace(RESET, silent=True, noticed=0.48, limit=NOTICE)


def told(*done: Killed) -> tuple[bool, list[tuple[str, str]]]:
    """Whether all is as it must be, and how many kept each bound of how many: from the notice, and from the kill."""
    text = io.StringIO()
    good = report(list(done), Console(file=text, width=200), notice=NOTICE, rtt_ms=RTT * 1e3)
    return good, re.findall(r"kept in (\d+) of (\d+)", text.getvalue())


def test_what_keeps_every_bound_is_good() -> None:
    assert told(RESET, SILENT, Killed(True, True)) == (True, [("2", "2"), ("2", "2")])


def test_a_third_round_trip_is_one_too_many() -> None:
    slow = replace(SILENT, again=PREFILL + 2.5 * RTT, noticed=NOTICE)
    assert told(SILENT, slow) == (True, [("1", "2"), ("1", "2")])
    soon = replace(slow, noticed=NOTICE - RTT)  # from the kill on it is made up for
    assert told(SILENT, soon) == (True, [("1", "2"), ("2", "2")])


@pytest.mark.parametrize("bad", [replace(SILENT, right=False), replace(SILENT, noticed=0.51)], ids=["wrong", "late"])
def test_a_wrong_answer_or_a_late_notice_is_not_good(bad: Killed) -> None:
    assert not told(RESET, bad)[0]
