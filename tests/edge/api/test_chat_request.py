"""A question as a request, and back: nothing of it is lost on the way."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from cutline.core.conversation import ImagePart, Message, TextPart
from cutline.core.request import Mode, Request
from cutline.core.sampling import Sampling
from cutline.core.wire import Wire
from cutline.edge.api.requests.schema import ChatRequest, read_request

WORDED = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)


@st.composite
def questions(draw: st.DrawFn) -> Request:
    turns: list[Message] = []
    images: list[bytes] = []
    for role in [*draw(st.lists(st.sampled_from(["system", "user", "assistant"]), max_size=3)), "user"]:
        parts: list[TextPart | ImagePart] = [TextPart(draw(WORDED))]
        if role == "user" and draw(st.booleans()):
            parts.insert(draw(st.integers(0, 1)), ImagePart())
            images.append(draw(st.binary(min_size=1, max_size=30)))
        turns.append(Message(role, tuple(parts)))  # type: ignore[arg-type]
    sampling = Sampling(
        temperature=draw(st.sampled_from([0.0, 0.5, 1.0])),
        top_k=draw(st.integers(0, 9)),
        top_p=draw(st.sampled_from([0.5, 1.0])),
        seed=draw(st.integers(0, 2**63 - 1)),
        min_p=draw(st.sampled_from([0.0, 0.25])),
        repetition_penalty=draw(st.sampled_from([None, 1.0, 1.5])),
        presence_penalty=draw(st.sampled_from([0.0, -2.0])),
        frequency_penalty=draw(st.sampled_from([0.0, 2.0])),
        logit_bias=draw(st.sampled_from([(), ((3, 1.5), (90, -100.0))])),
        stop_token_ids=draw(st.sampled_from([(), (3, 90)])),
    )
    how: dict[str, Any] = draw(
        st.sampled_from(
            [
                {"mode": Mode.DRAFT, "cut": "decoder.2", "wire": Wire.INT8, "keep_image_tokens": 0.75, "effort": 0.25},
                {"exact": True, "image_must_stay": True, "max_latency_ms": 250.0, "min_agreement": 0.75},
                {"mode": Mode.SPLIT, "cut": "vision.1", "noise": 0.5},
                {"max_leak": 0.25},
                {"mode": Mode.CLOUD, "timeout": 33.0, "correct_seconds": 4.0},
            ]
        )
    )
    return Request(
        messages=tuple(turns),
        images=tuple(images),
        sampling=sampling,
        max_tokens=draw(st.integers(1, 10**9)),
        stop=tuple(draw(st.lists(WORDED, max_size=4))),
        logprobs=draw(st.none() | st.integers(0, 5)),
        store=draw(st.booleans()),
        **how,
    )


@given(questions())
def test_a_question_goes_there_whole(question: Request) -> None:
    body = msgspec.json.encode(ChatRequest.asking(question))
    read = read_request(body)
    images = [base64.b64decode(url.partition(",")[2]) for url in read.urls]
    assert read.question(images) == question


def test_every_field_of_a_question_is_asked_for() -> None:
    """One that is new must be added to the request, or said here to be none of its business."""
    held = {"messages", "images", "sampling", "max_tokens", "stop", "logprobs", "tools", "store"}
    ours = set(msgspec.structs.asdict(ChatRequest(messages=[]).cutline)) - {*Sampling.__struct_fields__, "guesses"}
    found_out = {"tenant", "request_id", "trace"}  # by whose token it is, and in headers
    assert set(Request.__struct_fields__) == held | ours | found_out
