"""No bytes from outside make a decoder do anything but take them or refuse them.

`bench/fuzz.py` is the long run, guided by coverage; here seeds are changed at random, and what once went wrong stays.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutline.bench.decoders import DECODERS, seeds

KEPT = sorted((Path(__file__).parent / "corpus").glob("*/*"))
Change = tuple[int, int, bytes]  # where, how many bytes go, what comes instead


@pytest.mark.parametrize("name", DECODERS)
def test_seeds_are_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(read: object, given: object) -> None:
        assert callable(read)
        read(given)

    monkeypatch.setattr("cutline.bench.decoders._refusing", fail)  # who refuses a seed raises now
    for seed in seeds(name):
        DECODERS[name](seed)


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_changed_seeds(name: str, data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(seeds(name))))
    places = st.tuples(st.integers(0, len(content)), st.integers(0, 8), st.binary(max_size=8))
    for at, gone, come in data.draw(st.lists(places, min_size=1, max_size=6)):
        content[at : at + gone] = come
    DECODERS[name](bytes(content))


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=300))
def test_any_bytes(name: str, content: bytes) -> None:
    DECODERS[name](content)


@pytest.mark.parametrize("file", KEPT, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_what_once_went_wrong(file: Path) -> None:
    DECODERS[file.parent.name](file.read_bytes())
