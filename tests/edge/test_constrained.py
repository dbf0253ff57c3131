"""Answers that keep to a constraint: the same in every mode, whole or marked as cut short, and refused in a line."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest

from cutline.cloud.engine.sessions.session import Session
from cutline.core.constraint import Constraint
from cutline.core.request import Mode
from cutline.core.sampling import Sampling
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge.agent import Agent, AgentSettings
from cutline.edge.generation.result import Answer
from cutline.edge.inference.drafter import Drafted
from cutline.edge.offload.backends.openai_upstream import Upstream
from cutline.errors import InputError, WorkerFailed
from cutline.models.bundle import Bundle
from cutline.models.law.grammars import Matcher
from cutline.protos import features
from cutline.protos.messages import Finished
from cutline.testing.drafter import ScriptedDrafter
from cutline.testing.together import asking, ids, together

CARD = next(iter(requests(Split.EVALUATION, 1, seed=5)))
SCHEMA = {
    "type": "object",
    "properties": {
        "digits": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 4},
        "colour": {"enum": ["red", "blue", "green", "yellow"]},
    },
    "required": ["digits", "colour"],
    "additionalProperties": False,
}
CONSTRAINTS = [
    Constraint.json_schema(SCHEMA),
    Constraint.regex("[0-9]( [0-9]){0,3}"),
    Constraint.choice(["red", "a blue one", "4"]),
    Constraint.lark('start: "sum " NUMBER\nNUMBER: /[0-9]{1,2}/'),
]
SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.9, "seed": 3, "top_p": 0.9, "min_p": 0.01},
    {"repetition_penalty": 1.5, "frequency_penalty": 1.0},
]


def keeps(constraint: Constraint, text: str) -> bool:
    match constraint.grammar:
        case "json_schema":
            jsonschema.validate(json.loads(text), constraint.value)
            return True
        case "choice":
            return text in constraint.value
        case "regex":
            return re.fullmatch(constraint.text, text) is not None
        case _:
            return re.fullmatch("sum [0-9]{1,2}", text) is not None


@pytest.mark.parametrize("sampled", SAMPLINGS)
def test_a_constrained_answer_is_the_same_in_every_mode(sampled: dict[str, Any]) -> None:
    async def run() -> None:
        async with together(Bundle.open(TARGET), Bundle.open(DRAFTER)) as agent:
            for constraint in CONSTRAINTS:
                how = Sampling(constraint=constraint, **sampled)
                answers = [
                    await agent.answer(asking(CARD, mode, sampling=how)) for mode in Mode if mode is not Mode.SPLIT
                ]
                alone, *exact = answers
                assert all(one.exact for one in exact)
                assert len({ids(one) for one in exact}) == 1
                assert all(keeps(constraint, one.text) for one in (alone, *exact) if one.complete)
                assert exact[0].complete

    asyncio.run(run())


def test_drafts_of_a_constrained_answer_are_confirmed() -> None:
    """The drafter keeps to the constraint as well, so that what is fixed in it is never rejected."""

    async def run() -> Answer:
        async with together(Bundle.open(TARGET), Bundle.open(DRAFTER)) as agent:
            how = Sampling(constraint=Constraint.json_schema(SCHEMA))
            return await agent.answer(asking(CARD, Mode.DRAFT, sampling=how))

    answer = asyncio.run(run())
    assert answer.accepted > len(answer.tokens) / 3


@pytest.mark.parametrize("sampled", SAMPLINGS)
def test_what_the_constraint_forces_takes_no_pass_of_its_own(
    sampled: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is verified with the token before it, so the answer is as it was: also where others would write the same."""
    ended: list[Finished] = []
    finished = Session.finished

    def note(session: Session) -> Finished:
        ended.append(finished(session))
        return ended[-1]

    monkeypatch.setattr(Session, "finished", note)
    how = Sampling(constraint=Constraint.json_schema(SCHEMA), **sampled)

    async def run() -> Answer:
        async with together(Bundle.open(TARGET), Bundle.open(DRAFTER)) as agent:
            return await agent.answer(asking(CARD, Mode.CLOUD, sampling=how))

    ahead = asyncio.run(run())
    with monkeypatch.context() as without:
        without.setattr(Matcher, "forced", lambda matcher: ())
        plain = asyncio.run(run())
    assert (ids(ahead), ahead.complete, ahead.accepted) == (ids(plain), True, 0)
    assert ended[1].passes == len(plain.tokens)
    assert ended[0].passes < len(plain.tokens) / 2
    assert ended[0].verified == 0, "no agent drafted any of it"


@pytest.mark.parametrize("effort", [0.0, 0.3])
def test_who_lets_the_worker_only_verify_is_not_told_what_is_forced(effort: float) -> None:
    async def run() -> tuple[Answer, Answer]:
        async with together(Bundle.open(TARGET), Bundle.open(DRAFTER)) as agent:
            how = Sampling(constraint=Constraint.json_schema(SCHEMA))
            drafted = await agent.answer(asking(CARD, Mode.DRAFT, sampling=how, effort=effort))
            return drafted, await agent.answer(asking(CARD, Mode.CLOUD, sampling=how))

    drafted, alone = asyncio.run(run())
    assert ids(drafted) == ids(alone)


@pytest.mark.parametrize("mode", [Mode.CLOUD, Mode.DRAFT, Mode.EDGE])
def test_a_constraint_that_becomes_too_complex_is_the_clients(mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever finds it out, in the middle of the answer; and the worker goes on."""
    allowed, consumed = Matcher.allowed, Matcher.consume
    seen: dict[int, int] = {}

    def consume(matcher: Matcher, tokens: Any) -> None:
        seen[id(matcher)] = seen.get(id(matcher), 0) + len(tokens)
        consumed(matcher, tokens)

    def limited(matcher: Matcher) -> Any:
        if seen.get(id(matcher), 0) > 12:
            raise InputError("the constraint became too complex to go on: so many states")
        return allowed(matcher)

    async def run() -> None:
        async with together(Bundle.open(TARGET), Bundle.open(DRAFTER)) as agent:
            how = Sampling(constraint=Constraint.json_schema(SCHEMA))
            with monkeypatch.context() as patched:
                patched.setattr(Matcher, "consume", consume)
                patched.setattr(Matcher, "allowed", limited)
                with pytest.raises(InputError, match="too complex to go on"):
                    await agent.answer(asking(CARD, mode, sampling=how))
            assert (await agent.answer(asking(CARD, mode, sampling=how))).complete

    asyncio.run(run())


def test_a_draft_ends_where_the_drafter_finds_the_constraint_too_complex() -> None:
    """It drafts further than what is confirmed: the worker, who does not, has the word."""

    def too_complex(*given: Any) -> Iterator[Drafted]:
        for drafted in [InputError("the constraint became too complex to go on")]:
            raise drafted
        yield Drafted(0, 0.0)

    async def run() -> None:
        drafts = ScriptedDrafter(too_complex)
        async with together(Bundle.open(TARGET), Bundle.open(DRAFTER), open_drafter=drafts) as agent:
            how = Sampling(constraint=Constraint.json_schema(SCHEMA))
            answer = await agent.answer(asking(CARD, Mode.DRAFT, sampling=how))
            assert (answer.exact, answer.complete, answer.drafted) == (True, True, 0)

    asyncio.run(run())


def test_a_constrained_answer_is_not_kept_by_the_gate() -> None:
    """Its group was not calibrated."""

    async def run() -> Answer:
        async with together(Bundle.open(TARGET), Bundle.open(DRAFTER)) as agent:
            how = Sampling(constraint=Constraint.choice(["4", "5"]))
            return await agent.answer(asking(CARD, Mode.AUTO, sampling=how))

    answer = asyncio.run(run())
    assert answer.gate is not None
    assert "constrained" in answer.gate.group
    assert not answer.gate.calibrated
    assert answer.exact


def test_json_that_is_cut_short_says_so() -> None:
    async def run() -> None:
        async with together(Bundle.open(TARGET), Bundle.open(DRAFTER)) as agent:
            how = Sampling(constraint=Constraint.json_schema(SCHEMA))
            for mode in (Mode.CLOUD, Mode.DRAFT, Mode.EDGE):
                answer = await agent.answer(asking(CARD, mode, sampling=how, max_tokens=5))
                assert not answer.complete
                assert len(answer.tokens) == 5

    asyncio.run(run())


def test_a_worker_of_another_dialect_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would allow other tokens, so its answer would not be the same."""

    async def run() -> None:
        async with together(Bundle.open(TARGET), Bundle.open(DRAFTER)) as agent:
            plain = await agent.answer(asking(CARD, Mode.CLOUD))
            assert plain.exact
            how = Sampling(constraint=Constraint.choice(["4"]))
            described = features.understood()
            monkeypatch.setattr(features, "dialect", lambda: "another")
            assert features.understood() != described
            with pytest.raises(Exception, match=r"sampling\.constraint\.another"):
                await agent.answer(asking(CARD, Mode.CLOUD, sampling=how))

    asyncio.run(run())


@pytest.mark.parametrize(
    "constraint", [Constraint.regex("(a(b"), Constraint.json_schema({"type": "no"}), Constraint.lark("start: missing")]
)
def test_what_does_not_compile_is_bad_input_before_anything_is_asked(constraint: Constraint) -> None:
    async def run() -> None:
        async with Agent(Bundle.open(DRAFTER), threads=1) as agent:
            with pytest.raises(InputError, match="does not compile"):
                await agent.answer(asking(CARD, Mode.EDGE, sampling=Sampling(constraint=constraint)))

    asyncio.run(run())


# Of an upstream, which keeps to what it is asked, or does not.


def upstream(said: str, seen: list[Any]) -> Upstream:
    """A server that says this, whatever it is asked."""

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        choice = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        return httpx.Response(200, json={"choices": [choice]})

    return Upstream("http://localhost:1/v1", model="big", transport=httpx.MockTransport(handle))


async def asked_upstream(said: str, seen: list[Any], constraint: Constraint) -> Answer:
    async with Agent(Bundle.open(DRAFTER), threads=1, settings=AgentSettings(upstream=upstream(said, seen))) as agent:
        return await agent.answer(asking(CARD, Mode.CLOUD, sampling=Sampling(constraint=constraint)))


def test_an_upstream_is_asked_for_the_schema_and_held_to_it() -> None:
    said, seen = json.dumps({"digits": [4, 7], "colour": "red"}, indent=1), list[Any]()
    answer = asyncio.run(asked_upstream(said, seen, Constraint.json_schema(SCHEMA)))
    assert json.loads(answer.text) == {"digits": [4, 7], "colour": "red"}
    assert answer.exact is None
    (sent,) = seen
    assert sent["response_format"]["json_schema"]["schema"] == SCHEMA
    assert sent["response_format"]["json_schema"]["strict"] is True


def test_an_upstream_is_asked_for_any_object_by_its_own_name() -> None:
    seen = list[Any]()
    asyncio.run(asked_upstream("{}", seen, Constraint.json_object()))
    assert seen[0]["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize("said", ["Four and seven.", '{"digits": [4, 7]}', '{"digits": [4], "colour": "pink"}'])
def test_an_upstream_that_ignores_the_schema_is_an_error(said: str) -> None:
    with pytest.raises(WorkerFailed, match="does not keep to the response format"):
        asyncio.run(asked_upstream(said, [], Constraint.json_schema(SCHEMA)))


def test_an_upstream_is_not_asked_for_what_it_has_no_words_for() -> None:
    seen = list[Any]()
    with pytest.raises(InputError, match="keeps to JSON schemas, not to a regex"):
        asyncio.run(asked_upstream("4", seen, Constraint.regex("[0-9]")))
    assert not seen
