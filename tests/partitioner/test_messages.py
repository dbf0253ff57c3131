"""The planner's bytes against the messages themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutline.core.request import DRAFT_CHUNK, Mode
from cutline.core.wire import Wire, bytes_per_row
from cutline.partitioner import cost
from cutline.partitioner.plan import Choice, Drafting, Space
from cutline.protos import tensors
from cutline.protos.codec import agent_to_wire, worker_to_wire
from cutline.protos.messages import Confirmed, Draft, Finished, Open, Opened, Reason, boundary_chunks, image_chunks


def size(*messages: Any) -> int:
    return sum(agent_to_wire(message).ByteSize() for message in messages)


def opening(cut: str, tokens: tuple[int, ...], draft: tuple[int, ...], *, deep: bool) -> Open:
    return Open(
        model="f" * 64,
        tokens=tokens,
        prompt_length=len(tokens),
        max_tokens=64,
        cut=cut,
        images=int(cut == "image"),
        grids=((0, 0),),
        digests=() if deep else (bytes(32),),
        effort=1.0,
        draft=draft,
    )


def test_the_agent_drafts_and_cuts_messages_as_the_planner_thinks() -> None:
    assert tensors.CHUNK == cost.MESSAGE_BYTES


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_what_goes_up(made: Any, data: st.DataObject) -> None:
    setting = made.setting()
    asked = data.draw(made.questions)
    space = Space(cuts=setting.target.line.layers, lengths=(DRAFT_CHUNK,))
    terms = cost.terms_of(setting, asked, space)
    index = data.draw(st.sampled_from([index for index, asks in enumerate(terms.asks) if asks]))
    choice = terms.choices[index]
    rng = np.random.default_rng(0)
    # Of the vocabulary of 500, most ids take two bytes.
    tokens = tuple(rng.integers(128, 500, asked.prompt_tokens).tolist())
    draft = tuple(rng.integers(128, 500, asked.answer_tokens).tolist()) if choice.mode == "auto" else ()
    assert choice.cut is not None
    deep = choice.cut in setting.target.line.deep_cuts
    first = opening(choice.cut, tokens, draft, deep=deep)
    if choice.cut == "image":
        sent = size(first, *image_chunks(bytes(asked.image_bytes)))
    else:
        place = setting.target.line.place(choice.cut)
        tower = place <= setting.target.line.place("connector")
        rows = 64 if tower else asked.prompt_tokens + len(draft) if deep else 16
        assert choice.wire is not None
        sent = size(first, *boundary_chunks(np.zeros((rows, 64), np.float32), choice.wire))
    assert terms.upload[index] == pytest.approx(sent, abs=12)


@pytest.mark.parametrize("wire", Wire)
def test_what_a_draft_takes(made: Any, wire: Wire) -> None:
    setting = made.setting()
    terms = cost.terms_of(setting, made.asked(answer_tokens=40), Space(cuts=("decoder.0", "decoder.1"), wires=(wire,)))
    tokens = tuple(range(200, 200 + DRAFT_CHUNK + 1))
    for cut in ("decoder.0", "decoder.1"):
        index = terms.choices.index(Choice(mode=Mode.DRAFT, cut=cut, wire=wire, drafting=Drafting(DRAFT_CHUNK, 1.0)))
        rows = np.zeros((DRAFT_CHUNK + 1, 64), np.float32) if cut == "decoder.1" else None
        sent = size(Draft(60, tokens, rows, wire))
        assert terms.step_upload[index] == pytest.approx(sent, abs=8)
        if rows is not None:
            assert sent > len(rows) * bytes_per_row(wire, 64)


def test_what_comes_down() -> None:
    one = worker_to_wire(Confirmed(60, (300,), 1)).ByteSize()
    assert pytest.approx(one, abs=4) == cost.CONFIRMED_BYTES + 1
    closing = worker_to_wire(Opened("f" * 16, 0.1, 0.1, 0.1)).ByteSize()
    closing += worker_to_wire(Finished(Reason.STOP, 9, 20, 0.25)).ByteSize()
    assert closing == pytest.approx(cost.CLOSING_BYTES, abs=3)
