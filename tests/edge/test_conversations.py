"""Conversations of several turns and images, end to end: every mode says what transformers says, and sends no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from cutline.cloud.model.loader import load_model
from cutline.cloud.serving.server import WorkerOptions, serve
from cutline.core.conversation import ImagePart, Message, TextPart
from cutline.core.request import Mode, Request
from cutline.core.wire import Wire
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge.agent import Agent
from cutline.edge.generation.result import Answer, Provenance
from cutline.edge.inference.kv_cache import History
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image
from cutline.models.prompt import PromptBuilder

DRAFTS, BUNDLE = Bundle.open(DRAFTER), Bundle.open(TARGET)
FILES = list(dict.fromkeys(one.image for one in requests(Split.EVALUATION, 3, seed=3)))
WAYS: tuple[dict[str, Any], ...] = (
    {"mode": Mode.CLOUD},
    {"mode": Mode.DRAFT},
    {"mode": Mode.DRAFT, "effort": 0.0},
    {"mode": Mode.SPLIT, "cut": "vision.1"},
    {"mode": Mode.SPLIT, "cut": "decoder.0"},
    {"mode": Mode.SPLIT, "cut": "decoder.2"},
    {"mode": Mode.DRAFT, "cut": "vision.0"},
    {"mode": Mode.DRAFT, "cut": "decoder.2"},
)


def asks(text: str, *, images: int = 0) -> Message:
    return Message("user", (*[ImagePart()] * images, TextPart(text)))


def says(text: str) -> Message:
    return Message("assistant", (TextPart(text),))


class Whole:
    """The unsplit target in transformers."""

    def __init__(self) -> None:
        self._model = load_model(BUNDLE)
        self._prompts = PromptBuilder.open(BUNDLE)

    @torch.inference_mode()
    def answer(self, messages: Sequence[Message], files: Sequence[bytes]) -> tuple[int, ...]:
        family = BUNDLE.manifest.family
        images = [family.preprocess(decode_image(file)) for file in files]
        prompt = self._prompts.build(messages, [one.grid for one in images]).ids
        ids = self._model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            **{name: torch.from_numpy(array) for name, array in family.as_given(images).items()},
            max_new_tokens=64,
            do_sample=False,
            eos_token_id=list(BUNDLE.manifest.stop_tokens),
        )
        return tuple(ids[0, len(prompt) :].tolist())


@pytest.fixture(scope="module")
def whole() -> Whole:
    return Whole()


@asynccontextmanager
async def together() -> AsyncIterator[Agent]:
    async with (
        serve(BUNDLE, WorkerOptions(slots=4, context=256)) as address,
        Agent(DRAFTS, worker=address, threads=1, target=BUNDLE) as agent,
    ):
        yield agent


def ids(answer: Answer) -> tuple[int, ...]:
    return tuple(token.id for token in answer.tokens)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way.values())))
def test_a_second_turn_is_the_targets_own_and_reuses_the_image(whole: Whole, way: dict[str, Any]) -> None:
    async def run() -> None:
        async with together() as agent:
            first = (asks("Describe the card.", images=1),)
            answer = await agent.answer(Request(messages=first, images=(FILES[0],), **way))
            assert ids(answer) == whole.answer(first, FILES[:1])
            assert answer.reused_images == 0
            second = (*first, says(answer.text), asks("Read the digits."))
            asked = Request(messages=second, images=(FILES[0],), **way)
            again = await agent.answer(asked)
            assert ids(again) == whole.answer(second, FILES[:1])
            assert again.exact
            assert again.prompt_tokens > answer.prompt_tokens
            deep = asked.cut in BUNDLE.manifest.line.deep_cuts
            assert again.reused_images == int(not deep)
            if not deep:
                assert again.bytes_up < answer.bytes_up / 3

    asyncio.run(run())


@pytest.mark.threat("caches")
def test_a_real_worker_keeps_what_is_one_tenants_from_the_others() -> None:
    async def run() -> list[int]:
        async with together() as agent:
            return [
                (
                    await agent.answer(
                        Request(messages=(asks("What is a card?"),), mode=Mode.CLOUD, max_tokens=2, tenant=tenant)
                    )
                ).reused_tokens
                for tenant in ("one", "other", "one", "other")
            ]

    first, stranger, again, other = asyncio.run(run())
    assert first == stranger == 0
    assert again > 0
    assert other > 0


@pytest.mark.parametrize("mode", [Mode.EDGE, Mode.DRAFT, Mode.AUTO])
def test_the_drafter_runs_only_what_is_new(mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    run, rows = History.extend, list[int]()

    def extended(self: History, given: Any, *others: Any, **options: Any) -> Any:
        rows.append(len(given))
        return run(self, given, *others, **options)

    monkeypatch.setattr(History, "extend", extended)

    async def converse() -> None:
        async with together() as agent:
            first = (asks("Describe the card.", images=1),)
            answer = await agent.answer(Request(messages=first, images=(FILES[0],), mode=mode))
            assert rows[0] == answer.prompt_tokens
            rows.clear()
            second = (*first, says(answer.text), asks("Read the digits."))
            again = await agent.answer(Request(messages=second, images=(FILES[0],), mode=mode))
            # The answer as text need not be the tokens that it was.
            assert rows[0] <= again.prompt_tokens - answer.prompt_tokens

    asyncio.run(converse())


@pytest.mark.parametrize("cut", ["image", "vision.2", "decoder.0", "decoder.1"])
def test_images_of_several_turns_or_none(whole: Whole, cut: str) -> None:
    talks: tuple[tuple[tuple[Message, ...], tuple[int, ...]], ...] = (
        ((asks("Which digits?", images=2),), (0, 1)),
        ((asks("Which digits?", images=1), says("Two."), asks("And here?", images=1)), (0, 2)),
        ((Message("system", (TextPart("Be brief."),)), asks("What is a card?")), ()),
        ((asks("Which digits?", images=2),), (1, 0)),
        ((asks("Which digits?", images=2),), (1, 1)),
    )
    kept = set[int]()
    mode = Mode.CLOUD if cut == "image" else Mode.SPLIT

    async def run() -> None:
        async with together() as agent:
            for messages, which in talks:
                files = tuple(FILES[index] for index in which)
                answer = await agent.answer(Request(messages=messages, images=files, mode=mode, cut=cut))
                assert ids(answer) == whole.answer(messages, files)
                if cut != "decoder.1":
                    known = next((place for place, index in enumerate(which) if index not in kept), len(which))
                    assert answer.reused_images == known
                kept.update(which)
                edge = await agent.answer(Request(messages=messages, images=files, mode=Mode.EDGE))
                assert {token.source for token in edge.tokens} == {Provenance.EDGE}
                assert edge.prompt_tokens == answer.prompt_tokens

    asyncio.run(run())


@pytest.mark.parametrize("wire", [Wire.BFLOAT16, Wire.INT8, Wire.INT4])
def test_a_worker_knows_an_image_in_the_format_that_it_came_in(wire: Wire) -> None:
    async def run() -> None:
        async with together() as agent:
            asked = Request.about(FILES[0], "Read the digits.", mode=Mode.SPLIT, cut="decoder.0", wire=wire)
            first, again = [await agent.answer(asked) for _ in range(2)]
            assert (first.reused_images, again.reused_images) == (0, 1)
            assert ids(first) == ids(again)
            other = await agent.answer(
                Request.about(FILES[0], "Read the digits.", mode=Mode.SPLIT, cut="decoder.0", wire=Wire.FLOAT32)
            )
            assert other.reused_images == 0

    asyncio.run(run())


def test_a_worker_that_was_restarted_gets_everything_anew(whole: Whole) -> None:
    async def run() -> None:
        asked = Request.about(FILES[0], "Read the digits.", mode=Mode.CLOUD)
        async with (
            serve(BUNDLE, WorkerOptions(slots=2, context=256)) as address,
            Agent(DRAFTS, worker=address, threads=1) as agent,
        ):
            for reused in (0, 1):
                assert (await agent.answer(asked)).reused_images == reused
            contact = agent._backends.contact
        async with (
            serve(BUNDLE, WorkerOptions(listen=address, slots=2, context=256)),
            Agent(DRAFTS, worker=address, threads=1) as agent,
        ):
            agent._backends.contact = replace(contact, workers=agent.workers)
            answer = await agent.answer(asked)
            assert ids(answer) == whole.answer(asked.messages, asked.images)
            assert (answer.reused_images, answer.lost) == (0, ())
            assert (await agent.answer(asked)).reused_images == 1

    asyncio.run(run())


def test_tokens_of_the_drafter_come_with_their_likelihoods() -> None:
    async def run() -> None:
        async with together() as agent:
            asked = Request.about(FILES[0], "Describe the card.", mode=Mode.EDGE, logprobs=3)
            answer = await agent.answer(asked)
            for token in answer.tokens:
                assert token.logprob is not None
                assert token.logprob <= 0.0
                assert len(token.alternatives) == 3
                assert token.alternatives[0].id == token.id, "the drafter is greedy"
                assert token.alternatives[0].logprob == token.logprob
            plain = await agent.answer(Request.about(FILES[0], "Describe the card.", mode=Mode.EDGE))
            assert ids(plain) == ids(answer)
            assert {(token.logprob, token.alternatives) for token in plain.tokens} == {(None, ())}

    asyncio.run(run())
