"""Workers that do not fit a question: of another model, another version, or with too small a context."""

from __future__ import annotations

import asyncio

import pytest

from cutline.core.request import Mode
from cutline.core.sampling import Sampling
from cutline.edge.agent import Agent
from cutline.edge.generation.result import Tail
from cutline.errors import CutlineError, ModelMismatch, PromptError, VersionMismatch
from cutline.protos import features
from cutline.testing.worker import (
    BREAK,
    BUNDLE,
    OWN,
    TRUTH,
    ScriptedWorker,
    ask,
    asking,
    ids,
    serving,
)

MODES = [Mode.CLOUD, Mode.DRAFT, Mode.AUTO]


@pytest.fixture
def of_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "LATER", {"Sampling.top_k": "top-k"})


@pytest.mark.parametrize("mode", MODES)
def test_a_worker_of_another_model_is_passed_over_before_anything_goes_up(mode: Mode) -> None:
    other = ScriptedWorker(model="f" * 64, name="another")
    answer, _, addresses = ask([other, ScriptedWorker()], asking(mode))
    assert ids(answer) == TRUTH
    assert other.openings == []
    (passed,) = answer.lost
    assert (passed.worker, passed.next, passed.position) == (addresses[0], addresses[1], 0)
    assert "serves 'another' (ffffffffffff)" in passed.why


@pytest.mark.parametrize("mode", MODES)
def test_workers_that_are_all_of_another_model_are_an_error_each_time(mode: Mode) -> None:
    others = [ScriptedWorker(model=letter * 64, name=letter) for letter in "ef"]

    async def run() -> list[CutlineError]:
        async with (
            serving(others[0]) as one,
            serving(others[1]) as two,
            Agent(BUNDLE, worker=[one, two], threads=1) as agent,
        ):
            errors = list[CutlineError]()
            for _ in range(3):  # also while they are left alone
                with pytest.raises(CutlineError) as raised:
                    await agent.answer(asking(mode))
                errors.append(raised.value)
            return errors

    errors = asyncio.run(run())
    assert [type(error) for error in errors] == [ModelMismatch] * 3
    if mode is not Mode.CLOUD:
        assert all(f"serves {name!r}" in str(errors[-1]) for name in "ef")
    assert not any(other.openings for other in others)


def test_a_worker_that_is_away_may_have_the_model() -> None:
    other, away = ScriptedWorker(model="f" * 64), ScriptedWorker(*[(0, BREAK)] * 9)
    answer, _, addresses = ask([other, away], asking(Mode.AUTO))
    assert ids(answer) == OWN
    assert answer.tail is Tail.UNVERIFIED
    assert {lost.worker for lost in answer.lost} == set(addresses)


@pytest.mark.usefixtures("of_later")
@pytest.mark.parametrize("mode", MODES)
def test_what_an_older_worker_would_overlook_goes_to_a_newer_one(mode: Mode) -> None:
    older, newer = ScriptedWorker(), ScriptedWorker(features=("top-k",))
    plain, _, _ = ask([older], asking(mode))
    assert plain.worker is not None
    assert len(older.openings) == 1, "it gets the fields that it knows"
    answer, _, addresses = ask([older, newer], asking(mode, sampling=Sampling(temperature=0.5, top_k=7, seed=3)))
    assert (answer.worker, newer.openings[0].sampling.top_k) == (addresses[1], 7)
    assert len(older.openings) == 1
    assert "does not understand top-k" in answer.lost[0].why


@pytest.mark.usefixtures("of_later")
def test_with_older_workers_alone_the_drafter_answers_and_says_so() -> None:
    asked = asking(Mode.AUTO, sampling=Sampling(temperature=0.5, top_k=7, seed=3))
    answer, _, _ = ask([ScriptedWorker()], asked)
    assert answer.tail is Tail.UNVERIFIED
    assert "upgrade it" in answer.lost[0].why
    with pytest.raises(VersionMismatch, match="does not understand top-k"):
        ask([ScriptedWorker()], asking(Mode.CLOUD, sampling=asked.sampling))


@pytest.mark.parametrize("mode", MODES)
def test_the_context_of_a_worker_that_was_lost_limits_nobody_else(mode: Mode) -> None:
    prompt = ask([ScriptedWorker()], asking(Mode.CLOUD))[0].prompt_tokens
    answer, _, _ = ask([ScriptedWorker((3, BREAK), context=prompt + 7), ScriptedWorker()], asking(mode))
    assert (ids(answer), len(answer.lost), answer.complete) == (TRUTH, 1, True)


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_that_reaches_the_workers_context_ends_there(mode: Mode) -> None:
    prompt = ask([ScriptedWorker()], asking(Mode.CLOUD))[0].prompt_tokens
    small = ScriptedWorker(context=prompt + 7)
    answer, _, _ = ask([small], asking(mode))
    assert ids(answer) == TRUTH[:7]
    assert (answer.complete, answer.exact, answer.lost, answer.tail) == (False, True, (), None)
    assert [one.max_tokens for one in small.openings] == [7]


def test_a_prompt_goes_to_a_worker_that_has_room_for_it() -> None:
    prompt = ask([ScriptedWorker()], asking(Mode.CLOUD))[0].prompt_tokens
    answer, _, _ = ask([ScriptedWorker(context=prompt), ScriptedWorker()], asking(Mode.CLOUD))
    assert ids(answer) == TRUTH
    with pytest.raises(PromptError, match="leave no room in the context"):
        ask([ScriptedWorker(context=prompt)], asking(Mode.AUTO))


def test_a_begun_answer_outlives_a_worker_with_less_room() -> None:
    prompt = ask([ScriptedWorker()], asking(Mode.CLOUD))[0].prompt_tokens
    breaks, small = ScriptedWorker((9, BREAK)), ScriptedWorker(context=prompt + 4)
    answer, _, _ = ask([breaks, small], asking(Mode.CLOUD))
    assert ids(answer) == TRUTH
    assert small.openings == []
