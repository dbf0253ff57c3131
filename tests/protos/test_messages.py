"""Every message through the wire's bytes and back, and what becomes of bytes that nobody honest sends."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cutline.core.sampling import Sampling
from cutline.core.wire import Wire, bytes_per_row
from cutline.errors import (
    CutlineError,
    InputError,
    ModelMismatch,
    VersionMismatch,
    WorkerBusy,
    WorkerFailed,
    WorkerUnavailable,
)
from cutline.protos.codec import (
    agent_from_wire,
    agent_to_wire,
    description_from_wire,
    description_to_wire,
    worker_from_wire,
    worker_to_wire,
)
from cutline.protos.messages import (
    AgentMessage,
    Boundary,
    Cancel,
    Confirmed,
    Description,
    Draft,
    Finished,
    ImageChunk,
    Open,
    Opened,
    Reason,
    WorkerMessage,
    boundary_chunks,
    draft_chunks,
    image_chunks,
)
from cutline.protos.tensors import CHUNK
from cutline.protos.v1 import worker_pb2 as pb

uint32 = st.integers(0, 2**32 - 1)
seconds = st.floats(0, 1e6, width=32)
tokens = st.lists(uint32, max_size=20).map(tuple)


amount = st.floats(-2, 2)
samplings = st.builds(
    Sampling,
    temperature=st.just(0.0) | st.floats(0.01, 100),
    top_k=st.integers(0, 2**31 - 1),
    top_p=st.floats(0, 1, exclude_min=True),
    min_p=st.floats(0, 1),
    seed=st.integers(0, 2**63 - 1),
    repetition_penalty=st.none() | st.floats(0.01, 100),
    presence_penalty=amount,
    frequency_penalty=amount,
    logit_bias=st.lists(st.tuples(st.integers(0, 2**31 - 1), st.floats(-100, 100)), max_size=4).map(tuple),
    stop_token_ids=st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple),
)


@st.composite
def openings(draw: st.DrawFn) -> Open:
    begun = draw(st.lists(uint32, min_size=1, max_size=20).map(tuple))
    return Open(
        model=draw(st.text(max_size=80)),
        tokens=begun,
        prompt_length=draw(st.integers(1, len(begun))),
        max_tokens=draw(uint32),
        cut=draw(st.text(max_size=20)),
        images=draw(uint32),
        sampling=draw(samplings),
        effort=draw(st.floats(0, 1)),
        draft=draw(tokens),
        grids=draw(st.lists(st.tuples(uint32, uint32), max_size=4).map(tuple)),
        request_id=draw(st.sampled_from(["", "a", "req_1-2.3:4@b/c+d=", "x" * 128])),
    )


agent_messages: st.SearchStrategy[AgentMessage] = st.one_of(
    openings(),
    st.builds(ImageChunk, st.binary(max_size=100), st.booleans()),
    st.builds(Draft, uint32, tokens),
    st.just(Cancel()),
)
worker_messages: st.SearchStrategy[WorkerMessage] = st.one_of(
    st.builds(Opened, st.text(), seconds, seconds, seconds),
    tokens.flatmap(lambda new: st.builds(Confirmed, uint32, st.just(new), st.integers(0, len(new)))),
    st.builds(Finished, st.sampled_from(Reason), uint32, uint32, st.floats(0.0, allow_infinity=False)),
)
descriptions = st.builds(
    Description,
    model=st.text(),
    name=st.text(),
    version=st.text(),
    vision_layers=uint32,
    decoder_layers=uint32,
    context=uint32,
    sessions=uint32,
    max_sessions=uint32,
    start=st.text(),
    end=st.text(),
)


@given(agent_messages)
def test_an_agents_message_comes_back_as_it_was(message: AgentMessage) -> None:
    assert agent_from_wire(pb.AgentMessage.FromString(agent_to_wire(message).SerializeToString())) == message


@given(worker_messages)
def test_a_workers_message_comes_back_as_it_was(message: WorkerMessage) -> None:
    assert worker_from_wire(pb.WorkerMessage.FromString(worker_to_wire(message).SerializeToString())) == message


@pytest.mark.parametrize("kind", [InputError, ModelMismatch, WorkerBusy, WorkerUnavailable, WorkerFailed])
def test_a_workers_error_comes_back_as_it_was(kind: type[CutlineError]) -> None:
    wire = worker_to_wire(kind("what was wrong")).SerializeToString()
    back = worker_from_wire(pb.WorkerMessage.FromString(wire))
    assert type(back) is kind
    assert str(back) == "what was wrong"


@given(uint32, st.text())
def test_a_failure_of_any_status_is_an_error(status: int, words: str) -> None:
    back = worker_from_wire(pb.WorkerMessage(failure=pb.Failure(status=status, message=words)))
    assert isinstance(back, CutlineError)
    assert str(back) == words


@given(descriptions)
def test_a_description_comes_back_as_it_was(description: Description) -> None:
    wire = description_to_wire(description).SerializeToString()
    assert description_from_wire(pb.Description.FromString(wire)) == description


@pytest.mark.parametrize("name", ["x" * 129, "two words", "a\nb", "\x1b[2J", "é"])
def test_no_name_of_a_request_makes_lines_of_a_log(name: str) -> None:
    opening = pb.Open(tokens=[1], prompt_length=1, sampling=pb.Sampling(top_p=1), request_id=name)
    with pytest.raises(InputError, match="a request's id"):
        agent_from_wire(pb.AgentMessage(open=opening))


@pytest.mark.parametrize("wire", Wire)
def test_a_boundary_comes_back_in_its_format(wire: Wire) -> None:
    rows = np.random.default_rng(0).choice([-7, 0, 7], (5, 9)).astype(np.float32)  # every format holds these
    back = agent_from_wire(agent_to_wire(Boundary(rows, last=True, wire=wire)))
    assert isinstance(back, Boundary)
    assert back.last
    assert back.wire is wire
    assert back.rows.dtype == np.float32
    assert np.allclose(back.rows, rows, rtol=1e-6)


@pytest.mark.parametrize("wire", Wire)
@pytest.mark.parametrize("messages", [1, 2, 3])
@pytest.mark.parametrize("over", [-1, 0, 1])
def test_a_boundary_is_cut_into_pieces_of_whole_rows_that_the_wire_takes(wire: Wire, messages: int, over: int) -> None:
    width = 40_001
    count = CHUNK // bytes_per_row(wire, width) * messages + over
    rows = np.repeat(np.arange(1, count + 1, dtype=np.float32)[:, None], width, axis=1)
    wires = [agent_to_wire(chunk) for chunk in boundary_chunks(rows, wire)]
    assert all(len(part.boundary.rows.data) + len(part.boundary.rows.scales) <= CHUNK for part in wires)
    assert len(wires) == -(-count // (CHUNK // bytes_per_row(wire, width)))
    back = [agent_from_wire(part) for part in wires]
    assert np.allclose(np.concatenate([part.rows for part in back if isinstance(part, Boundary)]), rows, rtol=2**-8)
    assert [part.last for part in back if isinstance(part, Boundary)] == [False] * (len(back) - 1) + [True]


@pytest.mark.parametrize("wire", Wire)
def test_a_drafts_rows_come_back_in_their_format(wire: Wire) -> None:
    rows = np.random.default_rng(0).choice([-7, 0, 7], (3, 9)).astype(np.float32)  # every format holds these
    back = agent_from_wire(agent_to_wire(Draft(8, (1, 2, 3), rows, wire)))
    assert isinstance(back, Draft)
    assert (back.position, back.tokens, back.wire) == (8, (1, 2, 3), wire)
    assert back.rows is not None
    assert back.rows.dtype == np.float32
    assert np.allclose(back.rows, rows, rtol=1e-6)


@pytest.mark.parametrize("count", [1, 6, 7, 13])
def test_a_long_draft_is_cut_into_pieces_that_stand_behind_each_other(count: int) -> None:
    width = CHUNK // 4 // 6
    rows = np.repeat(np.arange(1, count + 1, dtype=np.float32)[:, None], width, axis=1)
    pieces = list(draft_chunks(50, range(count), rows, Wire.FLOAT32))
    assert len(pieces) == -(-count // 6)
    seen = {}
    for piece in pieces:
        back = agent_from_wire(agent_to_wire(piece))
        assert isinstance(back, Draft)
        assert back.rows is not None
        for offset, (token, row) in enumerate(zip(back.tokens, back.rows, strict=True)):
            seen[back.position + offset] = (token, row[0])
    assert seen == {50 + at: (at, at + 1) for at in range(count)}


def test_a_row_that_no_message_takes_is_not_sent() -> None:
    rows = np.zeros((2, CHUNK), np.float32)
    assert len(list(boundary_chunks(rows, Wire.INT4))) == 2
    with pytest.raises(InputError, match="more than a message takes"):
        next(boundary_chunks(rows, Wire.INT8))
    with pytest.raises(InputError, match="more than a message takes"):
        next(draft_chunks(3, (1, 2), rows, Wire.INT8))


@pytest.mark.parametrize("size", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_an_image_is_cut_into_pieces_that_the_wire_takes(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    chunks = [agent_from_wire(agent_to_wire(chunk)) for chunk in image_chunks(data)]
    assert b"".join(chunk.data for chunk in chunks if isinstance(chunk, ImageChunk)) == data
    assert [chunk.last for chunk in chunks if isinstance(chunk, ImageChunk)] == [False] * (len(chunks) - 1) + [True]


hostile = st.one_of(
    st.binary(max_size=200),
    # The outer field said rightly, and noise within: this gets further in.
    st.tuples(st.sampled_from([0x0A, 0x12, 0x1A, 0x22, 0x2A]), st.binary(max_size=120)).map(
        lambda part: bytes([part[0], len(part[1])]) + part[1]
    ),
)


@settings(max_examples=500)
@given(hostile)
@example(
    pb.AgentMessage(
        boundary=pb.Boundary(rows=pb.Tensor(type="FLOAT32", shape=[0, 2**32 - 1, 2**32 - 1]))
    ).SerializeToString()
)
@example(b"")
def test_bytes_for_a_worker_become_a_message_or_an_input_error(data: bytes) -> None:
    try:
        message = pb.AgentMessage.FromString(data)
    except DecodeError:
        return
    try:
        plain = agent_from_wire(message)
    except (InputError, VersionMismatch):
        return
    assert isinstance(plain, AgentMessage)


@settings(max_examples=500)
@given(hostile)
@example(pb.WorkerMessage(finished=pb.Finished(reason=7)).SerializeToString())  # type: ignore[arg-type]
@example(b"")
def test_bytes_for_an_agent_become_a_message_or_an_input_error(data: bytes) -> None:
    try:
        message = pb.WorkerMessage.FromString(data)
    except DecodeError:
        return
    try:
        plain = worker_from_wire(message)
    except (InputError, VersionMismatch):
        return
    assert isinstance(plain, WorkerMessage)


@given(
    st.lists(uint32, max_size=4),
    st.binary(max_size=64),
    st.integers(0, 6),
)
def test_a_tensor_of_any_shape_becomes_two_dimensions_or_an_input_error(
    shape: list[int], data: bytes, kind: int
) -> None:
    tensor = pb.Tensor(type=kind, shape=shape, data=data)  # type: ignore[arg-type]
    try:
        plain = agent_from_wire(pb.AgentMessage(boundary=pb.Boundary(rows=tensor)))
    except (InputError, VersionMismatch):
        return
    assert isinstance(plain, Boundary)
    assert plain.rows.shape == tuple(shape)
    assert plain.rows.nbytes <= 8 * len(data)


GOOD = Open(model="m", tokens=(1, 2, 3), prompt_length=2, max_tokens=4)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"effort": -0.1}, "effort"),
        ({"effort": 1.1}, "effort"),
        ({"effort": float("nan")}, "effort"),
        ({"prompt_length": 0}, "prompt_length"),
        ({"prompt_length": 4}, "prompt_length"),
        ({"tokens": ()}, "prompt_length"),
    ],
)
def test_an_opening_out_of_range_is_refused(wrong: dict[str, Any], words: str) -> None:
    assert agent_from_wire(agent_to_wire(GOOD)) == GOOD
    with pytest.raises(InputError, match=words):
        agent_from_wire(agent_to_wire(replace(GOOD, **wrong)))


@pytest.mark.parametrize(
    ("wire", "words"),
    [
        (pb.AgentMessage(), "no known kind"),
        (pb.AgentMessage(image=pb.ImageChunk(data=bytes(CHUNK + 1))), "too long"),
        (pb.AgentMessage(draft=pb.Draft(tokens=[0] * ((1 << 20) + 1))), "too many"),
        (agent_to_wire(Boundary(np.zeros((2, 2, 2), np.float32), last=True)), "2 dimensions"),
        (agent_to_wire(Draft(1, (2, 3), np.zeros((2, 2, 2), np.float32))), "2 dimensions"),
        (agent_to_wire(Draft(1, (2, 3), np.zeros((1, 4), np.float32))), "2 tokens came with 1 boundary rows"),
        (agent_to_wire(Draft(1, (), np.zeros((1, 4), np.float32))), "0 tokens came with 1 boundary rows"),
        (pb.AgentMessage(draft=pb.Draft(tokens=[1], rows=pb.Tensor())), "tensor type 0"),
        (
            pb.AgentMessage(
                draft=pb.Draft(
                    tokens=[1], rows=pb.Tensor(type="FLOAT32", shape=[1, 1], data=np.float32("nan").tobytes())
                )
            ),
            "not finite",
        ),
    ],
)
def test_an_agents_message_out_of_bounds_is_refused(wire: pb.AgentMessage, words: str) -> None:
    with pytest.raises(InputError, match=words):
        agent_from_wire(wire)


@pytest.mark.parametrize(
    ("wire", "words"),
    [
        (pb.WorkerMessage(), "no known kind"),
        (pb.WorkerMessage(opened=pb.Opened(upload_seconds=-1.0)), "times"),
        (pb.WorkerMessage(opened=pb.Opened(prepare_seconds=math.nan)), "times"),
        (pb.WorkerMessage(opened=pb.Opened(queue_seconds=math.inf)), "times"),
        (pb.WorkerMessage(confirmed=pb.Confirmed(tokens=[1], accepted=2)), "more drafted tokens"),
        (pb.WorkerMessage(finished=pb.Finished()), "no known reason"),
        (pb.WorkerMessage(finished=pb.Finished(reason="STOP", cloud_seconds=math.nan)), "times"),
        (pb.WorkerMessage(finished=pb.Finished(reason="STOP", cloud_seconds=math.inf)), "times"),
        (pb.WorkerMessage(finished=pb.Finished(reason="STOP", cloud_seconds=-1.0)), "times"),
    ],
)
def test_a_workers_message_out_of_bounds_is_refused(wire: pb.WorkerMessage, words: str) -> None:
    with pytest.raises(InputError, match=words):
        worker_from_wire(wire)


def test_a_reason_of_a_later_version_is_told_from_none() -> None:
    with pytest.raises(VersionMismatch, match="no known reason; it is newer than this agent"):
        worker_from_wire(pb.WorkerMessage(finished=pb.Finished(reason=3)))  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1.0])
def test_a_description_with_no_time_of_its_queue_is_refused(seconds: float) -> None:
    with pytest.raises(InputError, match="times"):
        description_from_wire(pb.Description(queue_seconds=seconds))
