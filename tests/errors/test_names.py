"""Names that the system gives, as text."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from cutline.edge.diagnostics.facts import BadBundle
from cutline.edge.diagnostics.inspection import _model
from cutline.errors.names import printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [(b"card.png", "card.png"), ("é".encode(), "é"), (b"b\xff.png", r"b\xff.png"), (b"\xed\xa0\x80", r"\xed\xa0\x80")],
)
def test_every_name_of_a_file_is_text(name: bytes, shown: str) -> None:
    assert printable(os.fsdecode(name)) == shown
    assert printable(os.fsdecode(name)).encode()


def test_what_is_examined_is_told_of_whatever_its_folder_is_called() -> None:
    found = _model(Path(os.fsdecode(b"/nowhere/b\xff")))
    assert isinstance(found, BadBundle)
    assert msgspec.json.decode(msgspec.json.encode(found))["path"] == r"/nowhere/b\xff"
