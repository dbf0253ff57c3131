"""The record of audits: what does not read, and what is not written again."""

from __future__ import annotations

from pathlib import Path

import pytest

from cutline.edge.audit.audits import Audits
from cutline.edge.generation.conditions import PLAIN
from cutline.testing.worker import keeps_from

GATE = keeps_from(0.5)


def test_a_record_that_does_not_read_is_told_of_and_begun_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for content in (b"{", b'{"of": "it", "seed": 1, "groups": {"a": {"strictness": 9}}}'):
        (tmp_path / "it.json").write_bytes(content)
        caplog.clear()
        audits = Audits(share=1.0)
        audits.load(tmp_path / "it.json", of="it")
        assert audits.every(GATE) == {}
        assert "begun anew" in caplog.text
    Audits().load(tmp_path / "none.json", of="it")


def test_a_record_is_written_where_something_was_seen(tmp_path: Path) -> None:
    """And not after each audit that nobody took: an agent whose link is gone tries every few seconds."""
    audits, file = Audits(share=1.0), tmp_path / "it.json"
    for times in (1, 2):
        audits.note(PLAIN, GATE, confidence=0.9, agreed=True)
        audits.save(file, of="it")
        written = file.stat().st_ino
        audits.save(file, of="it")
        assert file.stat().st_ino == written, "a file that is written is a new one"
        again = Audits()
        again.load(file, of="it")
        assert again.every(GATE)[PLAIN].audited == times
    audits.save(tmp_path / "other.json", of="it")
    assert (tmp_path / "other.json").read_bytes() == file.read_bytes()
