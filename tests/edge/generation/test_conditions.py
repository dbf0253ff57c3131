"""Which group a request is of: one for every request, and the same for none that differ in what counts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cutline.core.conversation import ImagePart, Message, Role, TextPart
from cutline.core.request import Mode, Request
from cutline.core.sampling import Sampling
from cutline.edge.agent import Agent, AgentSettings
from cutline.edge.generation.conditions import CALIBRATED, GROUPS, PLAIN, Order, conditions_of, group_of
from cutline.edge.generation.gate import Gate
from cutline.edge.generation.result import Answer, Decision
from cutline.edge.generation.semantic_cache import SemanticCache
from cutline.testing.worker import BUNDLE, REQUEST, TRUTH, ScriptedWorker, gated, ids, keeps_from, serving

GREEDY = Sampling()
PICTURE, TEXT = ImagePart(), TextPart("Read.")


def turns(*roles: Role) -> tuple[Message, ...]:
    return tuple(Message(role, (TEXT,)) for role in roles)


def user(*parts: ImagePart | TextPart) -> Message:
    return Message("user", parts)


SHAPES: list[tuple[tuple[Message, ...], str]] = [
    ((user(PICTURE, TEXT),), PLAIN),
    ((user(PICTURE, TEXT, TEXT),), PLAIN),  # a text in pieces
    ((user(TEXT, PICTURE),), "one picture, text first, first question, no system turn"),
    ((user(TEXT, PICTURE, TEXT),), "one picture, other order, first question, no system turn"),
    ((user(TextPart(""), PICTURE, TEXT),), "one picture, other order, first question, no system turn"),
    ((user(TEXT),), "no picture, first question, no system turn"),
    ((*turns("system"), user(PICTURE, TEXT)), "one picture, picture first, first question, system turn"),
    (
        (user(PICTURE, TEXT), *turns("assistant", "user")),
        "one picture, picture first, second question, no system turn",
    ),
    (
        (*turns("system"), user(TEXT, PICTURE, PICTURE), *turns("assistant", "user", "assistant", "user")),
        "two pictures, text first, third question, system turn",
    ),
    (
        (user(PICTURE, TEXT), *turns("assistant", "user") * 3),
        "one picture, picture first, later question, no system turn",
    ),
    ((*turns("user", "assistant"), user(PICTURE, TEXT)), "one picture, other order, second question, no system turn"),
    ((user(PICTURE, TEXT), *turns("user")), "one picture, other order, second question, no system turn"),
    ((user(PICTURE, TEXT), *turns("system", "user")), "one picture, other order, second question, no system turn"),
    ((user(PICTURE), *turns("assistant", "user")), "one picture, other order, second question, no system turn"),
    ((user(*[PICTURE] * 3, TEXT),), "more pictures, picture first, first question, no system turn"),
]


@pytest.mark.parametrize(("messages", "group"), SHAPES)
def test_the_group_of_a_conversation(messages: tuple[Message, ...], group: str) -> None:
    assert conditions_of(messages, GREEDY).group == group


def test_what_is_calibrated_are_groups_of_their_own() -> None:
    assert len(set(GROUPS)) == len(CALIBRATED) == 2 * 2 * 2 * 3
    assert all(one.order in (Order.PICTURE_FIRST, Order.TEXT_FIRST) for one in CALIBRATED)


parts = st.lists(st.sampled_from([PICTURE, TEXT]), min_size=1, max_size=5).map(tuple)
roles = st.sampled_from(["system", "user", "assistant"])
conversations = st.lists(st.builds(Message, roles, parts), max_size=8).map(tuple)
samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.0, 0.7]),
    top_k=st.integers(0, 3),
    top_p=st.sampled_from([1.0, 0.5]),
    min_p=st.sampled_from([0.0, 0.1]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.5]),
    seed=st.integers(0, 9),
    stop_token_ids=st.sampled_from([(), (), (7,)]),
)


@given(messages=conversations, sampling=samplings)
def test_every_conversation_has_a_group_and_a_sampled_one_has_none_that_is_calibrated(
    messages: tuple[Message, ...], sampling: Sampling
) -> None:
    found = conditions_of(messages, sampling)
    assert found.group
    assert (found.group in GROUPS) == (found in CALIBRATED)
    if sampling.temperature > 0.0 or sampling.frequency_penalty or sampling.stop_token_ids:
        assert found.group not in GROUPS
    else:  # of greedy choice neither the seed nor the tokens to keep change anything
        assert found == conditions_of(messages, GREEDY)


def answers(questions: Sequence[Request], gate: Gate, memory: SemanticCache | None = None) -> list[Answer]:
    """What an agent with this gate and a worker that says TRUTH answers."""

    async def run() -> list[Answer]:
        settings = AgentSettings(memory=memory)
        async with (
            serving(ScriptedWorker()) as address,
            Agent(gated(BUNDLE, gate), worker=address, threads=1, settings=settings) as agent,
        ):
            return [await agent.answer(question) for question in questions]

    return asyncio.run(run())


def asked(messages: tuple[Message, ...], **options: object) -> Request:
    """A question in mode auto, each of whose pictures is the card."""
    places = sum(isinstance(part, ImagePart) for message in messages for part in message.parts)
    return msgspec.structs.replace(Request(messages=messages, images=(REQUEST.image,) * places), **options)


asking = st.builds(
    lambda before, last: (*before, user(*last)),
    st.lists(st.builds(Message, roles, parts), max_size=3).map(tuple),
    parts.filter(lambda some: TEXT in some),
).filter(lambda messages: sum(part is PICTURE for one in messages for part in one.parts) <= 2)  # else they do not fit


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(messages=asking, open_group=st.sampled_from(GROUPS), temperature=st.sampled_from([0.0, 0.7]))
def test_nothing_is_kept_outside_a_group_that_was_calibrated(
    messages: tuple[Message, ...], open_group: str, temperature: float
) -> None:
    """The gate would keep whatever the drafter says, but of one group alone."""
    gate = Gate({open_group: keeps_from(0.0).groups[open_group]})
    question = asked(messages, sampling=Sampling(temperature=temperature))
    (answer,) = answers([question], gate)
    said = answer.gate
    assert said is not None
    assert said.group == group_of(question)
    if said.group != open_group or temperature > 0.0:
        assert (said.calibrated, said.decision, said.promised) == (False, Decision.PASSED, None)
        assert answer.exact
        assert ids(answer) == TRUTH
    else:
        assert said.calibrated


def test_what_the_gate_says_of_each_answer() -> None:
    plain, behind = asked((user(PICTURE, TEXT),)), asked((user(TEXT, PICTURE),))
    gate = Gate({PLAIN: keeps_from(0.0).groups[PLAIN]})
    edge, cloud = (msgspec.structs.replace(plain, mode=mode) for mode in (Mode.EDGE, Mode.CLOUD))
    kept, passed, alone, theirs = answers([plain, behind, edge, cloud], gate)
    said = [one.gate for one in (kept, passed, alone, theirs) if one.gate is not None]
    assert [one.decision for one in said] == [Decision.KEPT, Decision.PASSED, Decision.NOT_ASKED, Decision.NOT_ASKED]
    assert [one.promised for one in said] == [0.05, None, None, None]
    assert [one.calibrated for one in said] == [True, False, True, True]
    assert [one.exact for one in (kept, passed, alone, theirs)] == [False, True, False, True]
    assert passed.confidence is None, "no draft that cannot be kept is waited for"


def test_a_remembered_answer_is_outside_the_promise_and_of_its_own_conditions() -> None:
    plain, behind = asked((user(PICTURE, TEXT),)), asked((user(TEXT, PICTURE),))
    gate = keeps_from(0.0)
    kept, again, other = answers([plain, plain, behind], gate, SemanticCache(60.0))
    assert kept.gate is not None
    assert again.gate is not None
    assert (kept.gate.decision, kept.gate.promised) == (Decision.KEPT, 0.05)
    assert (again.gate.decision, again.gate.promised) == (Decision.RECALLED, None)
    assert again.recalled is not None
    assert other.recalled is None
