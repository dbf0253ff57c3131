"""Compiled layers: they choose what those of transformers choose, and little is compiled for all passes."""

from __future__ import annotations

import queue
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.utils import counters

from cutline.cli.main import app
from cutline.cloud.engine.engine import Engine
from cutline.cloud.engine.sessions.session import Event, Session
from cutline.cloud.engine.sessions.session_request import SessionRequest
from cutline.cloud.engine.sessions.session_rows import SessionRows
from cutline.cloud.model.compilation import MOST_LAYERS, block_size, pieces
from cutline.cloud.model.model_runner import Capacity, Target
from cutline.core.sampling import Sampling
from cutline.errors import CutlineError, InputError
from cutline.models.bundle import Bundle
from cutline.protos.messages import Confirmed, Finished

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # torch's own, of what its compiler imports
    pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler"),
]

SLOTS = 5
GRAPHS = 2  # of one row, and of any number


@pytest.fixture(scope="module")
def compiled(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Two layers at a time, and anew: nothing that another run left is found."""
    torch.compiler.reset()
    counters.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        patch.setattr("cutline.cloud.model.compilation.MOST_LAYERS", 2)
        patch.setattr("torch._inductor.cpu_vec_isa.valid_vec_isa_list", list)  # plain code compiles in half the time
        yield Target(bundle, Capacity(slots=SLOTS, context=bundle.manifest.decoder.context), compiled=True)
    torch.compiler.reset()


def session(tokens: tuple[int, ...], slot: int, cut: str = "image") -> Session:
    request = SessionRequest(
        tokens=tokens, prompt_length=len(tokens), max_tokens=40, sampling=Sampling(), effort=1.0, cut=cut
    )
    return Session("s", request, slot, 10_000)


def test_logits_are_those_of_transformers_and_no_pass_is_compiled_for(
    bundle: Bundle, compiled: Target, unsplit: Any
) -> None:
    """Sessions of different lengths and cuts, in passes of 1 to many rows that any of them may sit out."""
    assert counters["stats"]["unique_graphs"] == GRAPHS
    dice = np.random.default_rng(0)
    cuts = ("image", "image", *bundle.manifest.line.deep_cuts[:2], "image")
    for _ in range(4):
        texts = [tuple(dice.integers(10, 200, int(dice.integers(1, 60))).tolist()) for _ in range(SLOTS)]
        todo = [(session(text, slot, cuts[slot]), text, 0) for slot, text in enumerate(texts)]
        rows = [
            None if cut == "image" else unsplit.rows(text, None, cut) for text, cut in zip(texts, cuts, strict=True)
        ]
        expected = [unsplit.logits(text, None) for text in texts]
        while todo:
            batch, ahead = [], []
            for one, text, start in todo:
                if dice.random() < 0.4:
                    ahead.append((one, text, start))
                    continue
                end = start + int(dice.integers(1, len(text) - start + 1))
                boundary = rows[one.slot]
                batch.append(
                    SessionRows(
                        one,
                        start,
                        text[start:end],
                        drafted=end - start - 1,
                        boundary=None if boundary is None else boundary[start:end],
                    )
                )
                ahead += [(one, text, end)] * (end < len(text))
            for part, logits in zip(batch, compiled.run(batch, [None] * len(batch)) if batch else [], strict=True):
                right = expected[part.session.slot][part.start : part.start + len(part.tokens)]
                torch.testing.assert_close(logits, right, atol=1e-4, rtol=1e-4)
            todo = ahead
    assert counters["stats"]["unique_graphs"] == GRAPHS


def test_an_engine_on_compiled_layers_gives_the_targets_own_tokens(
    bundle: Bundle, compiled: Target, cases: list[Any], unsplit: Any
) -> None:
    """From a thread that is not the one which compiled."""
    before = counters["stats"]["unique_graphs"]
    engine = Engine(compiled, bundle.manifest.stop_tokens)
    engine.start()
    try:
        talks: list[tuple[queue.SimpleQueue[Event], tuple[int, ...]]] = []
        for opening, image, answer in cases[:SLOTS]:
            asked = SessionRequest(
                tokens=opening.tokens,
                prompt_length=opening.prompt_length,
                max_tokens=opening.max_tokens,
                sampling=Sampling(),
                effort=1.0,
                boundary=unsplit.pixels(image),
            )
            talks.append((queue.SimpleQueue(), answer))
            engine.open(asked, (), talks[-1][0].put)
        for inbox, answer in talks:
            assert tuple(heard(inbox)) == answer
    finally:
        engine.stop()
    assert counters["stats"]["unique_graphs"] == before


def heard(inbox: queue.SimpleQueue[Event]) -> list[int]:
    tokens: list[int] = []
    while not isinstance(event := inbox.get(timeout=60), Finished):
        if isinstance(event, CutlineError):
            raise event
        if isinstance(event, Confirmed):
            tokens += event.tokens
    return tokens


def test_without_a_compiler_nothing_starts(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    with pytest.raises(InputError, match=r"install a C\+\+ compiler such as g\+\+, or leave out --compile"):
        Target(bundle, Capacity(slots=1, context=64), compiled=True)


def test_layers_that_devices_share_are_not_compiled() -> None:
    asked = ["cloud", "--insecure", "--listen", "127.0.0.1:0", "--compile", "--tensor-parallel", "2"]
    with pytest.raises(InputError, match="leave out --compile or --tensor-parallel"):
        app(asked, standalone_mode=False)


@given(st.integers(0, 9), st.integers(1, 60), st.data())
def test_pieces_are_all_layers_in_order_and_sessions_join_at_their_beginnings(
    first: int, count: int, data: st.DataObject
) -> None:
    layers, block = range(first, first + count), data.draw(st.integers(1, 12))
    entries = sorted(data.draw(st.lists(st.integers(layers.start, layers.stop))))
    made = list(pieces(layers, entries, block))
    assert [index for piece in made for index in piece] == list(layers)
    assert all(len(piece) <= block for piece in made)
    assert set(entries) <= {piece.start for piece in made}
    assert not made[-1]


@given(st.integers(1, 200))
def test_blocks_of_one_size_make_up_all_layers(layers: int) -> None:
    size = block_size(layers)
    assert layers % size == 0
    assert size == layers or size <= MOST_LAYERS
