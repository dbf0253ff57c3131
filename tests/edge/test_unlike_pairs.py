"""A drafter whose tokens are not its target's: what is said is the target's own, and most drafts are right."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial, wraps
from pathlib import Path
from typing import ParamSpec

import msgspec
import pytest

from cutline.cloud.serving.server import WorkerOptions, serve
from cutline.core.request import Mode, Request
from cutline.core.sampling import Sampling
from cutline.core.storage.seal import seal
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.reference import Reference
from cutline.demo.requests import requests
from cutline.edge.agent import Agent
from cutline.edge.generation.events import Settled
from cutline.edge.generation.result import Answer
from cutline.errors import BundleError, InputError
from cutline.models.bundle import Bundle, manifest_of
from cutline.models.pairs.pair import DESCRIPTION, Shared, served_model
from cutline.testing import together as pair
from cutline.testing.models.pairs import renumbered, unlike
from cutline.testing.together import check_account, ids, together

Given = ParamSpec("Given")
asking = partial(pair.asking, store=False)  # what is drafted is the drafter's alone
ASKED = list(requests(Split.EVALUATION, 2, seed=11))


def run(test: Callable[Given, Coroutine[None, None, None]]) -> Callable[Given, None]:
    """A test that runs an event loop of its own."""

    @wraps(test)
    def running(*args: Given.args, **kwargs: Given.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return running


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return renumbered(Bundle.open(TARGET), tmp_path_factory.mktemp("pair") / "target")


@pytest.fixture(scope="module")
def drafter(target: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return unlike(Bundle.open(DRAFTER), target, tmp_path_factory.mktemp("pair") / "drafter")


def test_what_is_served_is_the_targets_under_the_drafters_name(drafter: Bundle, target: Bundle) -> None:
    served = served_model(drafter)
    assert (served.shared.tokens, served.shared.template, served.shared.images) == (False, True, True)
    assert served.manifest.name == drafter.manifest.name
    assert served.manifest.target == target.manifest.identity
    assert served.manifest.stop_tokens == target.manifest.stop_tokens != drafter.manifest.stop_tokens


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8, seed=7)], ids=["greedy", "sampled"])
@run
async def test_every_mode_gives_the_targets_own_tokens(drafter: Bundle, target: Bundle, sampling: Sampling) -> None:
    async with together(target, drafter) as agent:
        for asked in ASKED:
            whole = await agent.answer(asking(asked, Mode.CLOUD, sampling=sampling))
            if sampling.temperature == 0.0:
                assert ids(whole) == Reference(target).answer(asked.image, asked.question.text)
            for effort in (0.0, 0.5, 1.0):
                drafted = await agent.answer(asking(asked, Mode.DRAFT, sampling=sampling, effort=effort))
                assert ids(drafted) == ids(whole)
                check_account(drafted)


@run
async def test_drafts_are_as_good_as_of_one_that_shares_the_tokens(drafter: Bundle, target: Bundle) -> None:
    async def accepted(target: Bundle, drafter: Bundle) -> list[Answer]:
        async with together(target, drafter) as agent:
            return [await agent.answer(asking(asked, Mode.DRAFT, effort=0.0)) for asked in ASKED]

    alike = await accepted(Bundle.open(TARGET), Bundle.open(DRAFTER))
    here = await accepted(target, drafter)
    assert [answer.text for answer in here] == [answer.text for answer in alike]
    # The last word is held back until the next begins, so a draft ends a token or two sooner; it is no worse for that.
    assert sum(one.accepted for one in here) >= 0.9 * sum(one.accepted for one in alike) > 0


@run
async def test_alone_it_says_what_it_says_before_a_target_of_its_tokens(drafter: Bundle) -> None:
    async with Agent(Bundle.open(DRAFTER), threads=1) as alike, Agent(drafter, threads=1) as agent:
        for asked in ASKED:
            theirs = await alike.answer(asking(asked, Mode.EDGE))
            ours = await agent.answer(asking(asked, Mode.EDGE))
            assert ours.text == theirs.text
            assert ours.ending == theirs.ending
            assert ours.confidence == pytest.approx(theirs.confidence)
            served = served_model(drafter)
            assert served.prompts.vocabulary.decode(ids(ours)) == ours.text
            assert ids(ours)[-1] in served.manifest.stop_tokens


@run
async def test_the_gate_keeps_what_it_keeps_of_a_pair_that_shares_the_tokens(drafter: Bundle, target: Bundle) -> None:
    async with (
        together(target, drafter) as agent,
        Agent(Bundle.open(DRAFTER), worker="127.0.0.1:9", threads=1) as alike,
    ):
        decided = [(await agent.answer(asking(asked, Mode.AUTO))).gate for asked in ASKED]
        expected = [(await alike.answer(asking(asked, Mode.AUTO))).gate for asked in ASKED]
    assert decided == expected


@run
async def test_an_answer_goes_on_alone_from_the_targets_tokens(drafter: Bundle, target: Bundle) -> None:
    """The worker dies behind some tokens, and the drafter reads those in its own."""
    longest = max(ASKED, key=lambda one: one.question.kind == "describe")
    async with together(target, drafter) as agent:
        whole = await agent.answer(asking(longest, Mode.DRAFT))
        answer = None
        async for event in agent.stream(asking(longest, Mode.DRAFT, effort=1.0)):
            agent.offline |= isinstance(event, Settled)
            answer = event
    assert isinstance(answer, Answer)
    assert answer.text == whole.text
    assert answer.complete
    assert answer.alone_from is not None
    assert 0 < answer.alone_from < len(answer.tokens)


@run
async def test_likelihoods_of_tokens_that_it_does_not_know_are_refused(drafter: Bundle, target: Bundle) -> None:
    async with together(target, drafter) as agent:
        for mode in (Mode.EDGE, Mode.AUTO):
            with pytest.raises(InputError, match="other tokens than its target"):
                await agent.answer(asking(ASKED[0], mode, logprobs=1))
        answer = await agent.answer(asking(ASKED[0], Mode.DRAFT, logprobs=1))
        assert all(token.logprob is not None for token in answer.tokens)


@run
async def test_a_bias_of_tokens_that_it_does_not_know_is_refused_where_nobody_else_answers(
    drafter: Bundle, target: Bundle
) -> None:
    async with together(target, drafter) as agent:
        first = ids(await agent.answer(asking(ASKED[0], Mode.CLOUD)))[0]
        biased = Sampling(logit_bias=((first, -100.0),))
        with pytest.raises(InputError, match="logit-bias"):
            await agent.answer(asking(ASKED[0], Mode.EDGE, sampling=biased))
        for mode in (Mode.DRAFT, Mode.AUTO):
            assert ids(await agent.answer(asking(ASKED[0], mode, sampling=biased)))[0] != first


@run
async def test_a_drafter_of_another_family_asks_in_its_own_words(tools_folder: Path, tmp_path: Path) -> None:
    """Random weights, so nearly all it drafts is wrong, and read in tokens, tiles and a template of its own."""
    target = Bundle.open(TARGET)
    drafter = unlike(Bundle.open(tools_folder / "drafter"), target, tmp_path / "drafter")
    assert served_model(drafter).shared == Shared(tokens=False, template=False, images=False)
    async with together(target, drafter) as agent:
        for asked in ASKED:
            answer = await agent.answer(asking(asked, Mode.DRAFT, effort=0.0))
            assert ids(answer) == Reference(target).answer(asked.image, asked.question.text)
            check_account(answer)
            assert answer.drafted > 0
        alone = await agent.answer(asking(ASKED[0], Mode.EDGE))
        assert alone.tokens


@run
async def test_a_drafter_that_sees_a_picture_otherwise_shares_the_tokens(tmp_path: Path) -> None:
    target, drafter = Bundle.open(TARGET), Bundle.open(DRAFTER)
    other = msgspec.structs.replace(drafter.manifest.family, mean=(0.4, 0.5, 0.6))
    paired = unlike(drafter, target, tmp_path / "drafter", family=other)
    assert served_model(paired).shared == Shared(tokens=True, template=True, images=False)
    async with together(target, paired) as agent:
        for sampling in (Sampling(), Sampling(temperature=0.8, seed=3)):
            for asked in ASKED:
                whole = await agent.answer(asking(asked, Mode.CLOUD, sampling=sampling))
                drafted = await agent.answer(asking(asked, Mode.DRAFT, sampling=sampling, effort=0.0))
                assert ids(drafted) == ids(whole)
                assert drafted.drafted > 0


@run
async def test_a_question_that_only_the_target_takes(tmp_path: Path) -> None:
    """The drafter's context does not hold its prompt: a worker answers without drafts, and alone it says why not."""
    target, drafter = Bundle.open(TARGET), Bundle.open(DRAFTER)
    short = msgspec.structs.replace(drafter.manifest.decoder, context=32)
    other = msgspec.structs.replace(drafter.manifest.family, mean=(0.4, 0.5, 0.6))
    paired = unlike(drafter, target, tmp_path / "drafter", family=other, decoder=short)
    words = "Say " + "very " * 30 + "shortly: what is on the card?"
    async with serve(target, WorkerOptions(slots=2)) as address, Agent(paired, worker=address, threads=1) as agent:
        for mode in (Mode.DRAFT, Mode.AUTO):
            answer = await agent.answer(Request.about(ASKED[0].image, words, mode=mode, max_tokens=8, store=False))
            assert answer.exact
            assert answer.drafted == 0
        with pytest.raises(InputError, match="the drafter cannot be asked: the prompt takes"):
            await agent.answer(Request.about(ASKED[0].image, words, mode=Mode.EDGE, max_tokens=8))


def test_a_target_without_a_token_to_stop_at_is_refused(drafter: Bundle, tmp_path: Path) -> None:
    described = manifest_of(drafter.file(DESCRIPTION).read_bytes(), drafter.path)
    endless = msgspec.structs.replace(described, stop_tokens=())
    with pytest.raises(BundleError, match="no stop tokens"):
        manifest_of(seal(msgspec.json.format(msgspec.json.encode(endless), indent=2) + b"\n"), tmp_path)
