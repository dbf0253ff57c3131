from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from cutline.cloud.server import serve
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.reference import Reference
from cutline.demo.requests import Request, requests
from cutline.edge.agent import Agent
from cutline.edge.answer import Answer, Source
from cutline.edge.drafter import Drafted, Drafting
from cutline.edge.exchange import CHUNK
from cutline.edge.gate import Gate
from cutline.edge.question import Mode, Question
from cutline.errors import (
    BundleError,
    ImageError,
    InputError,
    ModelMismatch,
    PromptError,
    WorkerBusy,
    WorkerUnavailable,
)
from cutline.models.bundle import Bundle
from cutline.models.prompt import PromptBuilder, question
from cutline.models.sampling import Sampling

Draft = Callable[[Drafting, Sequence[int], int], Iterator[Drafted]]

EFFORTS = (0.0, 0.5, 1.0)
ASKED = list(requests(Split.EVALUATION, 2, seed=11))
LONGEST = next(request for request in ASKED if request.question.kind == "describe")


@pytest.fixture(scope="module")
def target() -> Bundle:
    return Bundle.open(TARGET)


@pytest.fixture(scope="module")
def drafter() -> Bundle:
    return Bundle.open(DRAFTER)


@pytest.fixture(scope="module")
def reference(target: Bundle) -> Reference:
    return Reference(target)


@asynccontextmanager
async def together(target: Bundle, drafter: Bundle, *, slots: int = 8) -> AsyncIterator[Agent]:
    """An agent and its worker, in this process."""
    async with (
        serve(target, listen="127.0.0.1:0", slots=slots, context=256, device="cpu") as address,
        Agent(drafter, worker=address, threads=1) as agent,
    ):
        yield agent


def asking(request: Request, mode: Mode, *, sampling: Sampling | None = None, **options: Any) -> Question:
    max_tokens = int(options.pop("max_tokens", 64))
    return Question.about(
        request.image,
        request.question.text,
        mode=mode,
        sampling=sampling or Sampling(),
        max_tokens=max_tokens,
        **options,
    )


def ids(answer: Answer) -> tuple[int, ...]:
    return tuple(token.id for token in answer.tokens)


def check_account(answer: Answer) -> None:
    """What holds of every answer that a worker had a part in."""
    assert answer.accepted == sum(token.source is Source.DRAFT for token in answer.tokens) <= answer.drafted
    assert not any(token.source is Source.EDGE for token in answer.tokens)
    assert answer.text == "".join(token.text for token in answer.tokens).strip()
    assert answer.exact
    assert answer.worker is not None
    assert answer.rounds >= 1
    assert answer.bytes_up > 0 < answer.bytes_down
    assert 0 < answer.ttft_ms <= answer.latency_ms


def test_cloud_and_draft_give_the_unsplit_targets_tokens(target: Bundle, drafter: Bundle, reference: Reference) -> None:
    async def run() -> None:
        async with together(target, drafter) as agent:
            for request in ASKED:
                truth = reference.answer(request.image, request.question.text)
                cloud = await agent.answer(asking(request, Mode.CLOUD))
                assert ids(cloud) == truth
                assert cloud.text == reference.text(truth)
                check_account(cloud)
                assert (cloud.rounds, cloud.drafted) == (1, 0)
                for effort in EFFORTS:
                    draft = await agent.answer(asking(request, Mode.DRAFT, effort=effort))
                    assert ids(draft) == truth
                    check_account(draft)
                auto = await agent.answer(asking(request, Mode.AUTO))
                assert auto.confidence is not None
                if auto.exact:
                    assert ids(auto) == truth

    asyncio.run(run())


def test_sampled_answers_are_identical_in_every_mode(target: Bundle, drafter: Bundle) -> None:
    async def run() -> None:
        async with together(target, drafter) as agent:
            for seed, request in enumerate(ASKED[:6]):
                sampling = Sampling(temperature=0.8, top_p=0.95, seed=seed)
                cloud = await agent.answer(asking(request, Mode.CLOUD, sampling=sampling))
                for effort in EFFORTS:
                    draft = await agent.answer(asking(request, Mode.DRAFT, sampling=sampling, effort=effort))
                    assert ids(draft) == ids(cloud)
                auto = await agent.answer(asking(request, Mode.AUTO, sampling=sampling))
                assert auto.exact, "the gate was calibrated for greedy answers alone"
                assert ids(auto) == ids(cloud)

    asyncio.run(run())


def test_effort_is_of_no_account_without_drafts(target: Bundle, drafter: Bundle) -> None:
    """A worker that may not decode alone would wait for drafts that mode `cloud` never sends."""

    async def run() -> None:
        async with asyncio.timeout(20), together(target, drafter) as agent:
            asked = [asking(LONGEST, Mode.CLOUD, effort=effort) for effort in EFFORTS]
            first, *others = [await agent.answer(question) for question in asked]
            assert all(ids(answer) == ids(first) and answer.complete for answer in others)

    asyncio.run(run())


def test_a_drafter_that_breaks_ends_the_question_at_once(
    target: Bundle, drafter: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Drafting, answer: Sequence[int], limit: int) -> Iterator[Drafted]:
        raise RuntimeError("out of memory")

    async def run() -> None:
        async with asyncio.timeout(20), together(target, drafter) as agent:
            monkeypatch.setattr(Drafting, "draft", broken)
            with pytest.raises(RuntimeError, match="out of memory"):
                await agent.answer(asking(LONGEST, Mode.DRAFT, effort=0.0))

    asyncio.run(run())


def random_tokens(self: Drafting, answer: Sequence[int], limit: int) -> Iterator[Drafted]:
    rng = np.random.default_rng(len(answer))
    yield from (Drafted(int(token), 0.5) for token in rng.integers(10, 400, limit))


def ends_at_once(self: Drafting, answer: Sequence[int], limit: int) -> Iterator[Drafted]:
    yield Drafted(Bundle.open(DRAFTER).manifest.stop_tokens[0], 0.9)


def never_ends(self: Drafting, answer: Sequence[int], limit: int) -> Iterator[Drafted]:
    yield from (Drafted(20, 0.9) for _ in range(limit))


def wrong_in_places(every: int) -> Draft:
    """The drafter as it is, with every so many tokens replaced."""
    honest = Drafting.draft

    def draft(self: Drafting, answer: Sequence[int], limit: int) -> Iterator[Drafted]:
        for index, one in enumerate(honest(self, answer, limit), start=len(answer)):
            wrong = Drafted(one.token % 100 + 100, 0.5)
            yield wrong if index % every == every - 1 and wrong.token != one.token else one

    return draft


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize(
    "bad", [random_tokens, ends_at_once, never_ends, wrong_in_places(2), wrong_in_places(5)], ids=str
)
def test_a_bad_drafter_changes_nothing_but_the_cost(
    target: Bundle, drafter: Bundle, bad: Draft, effort: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with together(target, drafter) as agent:
            truths = [await agent.answer(asking(request, Mode.CLOUD)) for request in ASKED[:6]]
            monkeypatch.setattr(Drafting, "draft", bad)
            for request, truth in zip(ASKED[:6], truths, strict=True):
                answer = await agent.answer(asking(request, Mode.DRAFT, effort=effort))
                assert ids(answer) == ids(truth)
                assert answer.text == truth.text
                check_account(answer)

    asyncio.run(run())


def foreseen(answer: Sequence[int], *, wrong: int | None = None) -> Draft:
    """A drafter that knows the whole answer, but for the token at the index `wrong` on its first visit there."""

    def draft(self: Drafting, known: Sequence[int], limit: int) -> Iterator[Drafted]:
        for index in range(len(known), min(len(answer), len(known) + limit)):
            token = answer[index] + 1 if index == wrong and len(known) <= index else answer[index]
            yield Drafted(token, 1.0)

    return draft


def test_pure_speculation_costs_a_round_a_token_when_every_draft_is_wrong(
    target: Bundle, drafter: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with together(target, drafter) as agent:
            truth = ids(await agent.answer(asking(LONGEST, Mode.CLOUD)))

            def always_wrong(self: Drafting, answer: Sequence[int], limit: int) -> Iterator[Drafted]:
                following = truth[len(answer)] if len(answer) < len(truth) else 0
                yield from (Drafted(following % 100 + 100 + (following >= 100), 0.5) for _ in range(limit))

            monkeypatch.setattr(Drafting, "draft", always_wrong)
            answer = await agent.answer(asking(LONGEST, Mode.DRAFT, effort=0.0))
            assert ids(answer) == truth
            # Each token but the first needs a draft of its own, made after the one before it was known.
            assert answer.rounds == len(truth)
            assert answer.accepted == 0

    asyncio.run(run())


def test_pure_speculation_costs_one_round_when_every_draft_is_right(
    target: Bundle, drafter: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with together(target, drafter) as agent:
            truth = ids(await agent.answer(asking(LONGEST, Mode.CLOUD)))
            assert len(truth) > 2, "too short to tell"
            monkeypatch.setattr(Drafting, "draft", foreseen(truth))
            answer = await agent.answer(asking(LONGEST, Mode.DRAFT, effort=0.0))
            assert ids(answer) == truth
            # The worker may choose the first tokens before the first draft is there.
            assert answer.rounds <= 2
            assert answer.accepted >= len(truth) - CHUNK

    asyncio.run(run())


def gate_at(threshold: float) -> Callable[[Bundle], Gate]:
    return lambda bundle: Gate(threshold=threshold, risk=0.05, confidence=0.9, requests=100, kept=90, disagreed=1)


def test_what_the_gate_keeps_never_leaves_the_device(drafter: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutline.edge.agent.open_gate", gate_at(0.0))

    async def run() -> None:
        async with Agent(drafter, worker="127.0.0.1:1", threads=1) as agent:
            for request in ASKED[:6]:
                edge = await agent.answer(asking(request, Mode.EDGE))
                auto = await agent.answer(asking(request, Mode.AUTO))
                assert ids(auto) == ids(edge)
                for answer in (edge, auto):
                    assert {token.source for token in answer.tokens} == {Source.EDGE}
                    assert not answer.exact
                    assert answer.worker is None
                    assert (answer.bytes_up, answer.bytes_down, answer.rounds) == (0, 0, 0)
                    assert (answer.drafted, answer.accepted) == (0, 0)
                    # A quantized model's logits differ a little when it has run the prompt already.
                    assert answer.confidence == pytest.approx(edge.confidence, rel=1e-3)
                    assert answer.text == "".join(token.text for token in answer.tokens).strip()

    asyncio.run(run())


def test_what_it_does_not_keep_is_verified_whole_in_one_round(
    target: Bundle, drafter: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cutline.edge.agent.open_gate", gate_at(2.0))

    async def run() -> None:
        async with together(target, drafter) as agent:
            for request in ASKED[:6]:
                monkeypatch.undo()
                monkeypatch.setattr("cutline.edge.agent.open_gate", gate_at(2.0))
                truth = ids(await agent.answer(asking(request, Mode.CLOUD)))
                monkeypatch.setattr(Drafting, "draft", foreseen(truth))
                answer = await agent.answer(asking(request, Mode.AUTO))
                assert ids(answer) == truth
                check_account(answer)
                assert answer.rounds == 1
                assert answer.drafted == answer.accepted == len(truth)
                assert {token.source for token in answer.tokens} == {Source.DRAFT}

    asyncio.run(run())


def test_an_escalation_goes_on_drafting_from_where_it_was_wrong(
    target: Bundle, drafter: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cutline.edge.agent.open_gate", gate_at(2.0))

    async def run() -> None:
        async with together(target, drafter) as agent:
            truth = ids(await agent.answer(asking(LONGEST, Mode.CLOUD)))
            monkeypatch.setattr(Drafting, "draft", foreseen(truth, wrong=1))
            answer = await agent.answer(asking(LONGEST, Mode.AUTO, effort=0.0))
            assert ids(answer) == truth
            check_account(answer)
            assert answer.tokens[1].source is Source.CLOUD
            assert answer.rounds == 2

    asyncio.run(run())


@pytest.mark.parametrize("limit", [1, 2, 3, CHUNK + 1])
def test_a_limit_cuts_every_mode_alike(target: Bundle, drafter: Bundle, limit: int) -> None:
    async def run() -> None:
        async with together(target, drafter) as agent:
            whole = ids(await agent.answer(asking(LONGEST, Mode.CLOUD)))
            for mode in (Mode.CLOUD, Mode.DRAFT):
                answer = await agent.answer(asking(LONGEST, mode, max_tokens=limit))
                assert ids(answer) == whole[:limit]
                assert answer.complete == (limit >= len(whole))
            assert len((await agent.answer(asking(LONGEST, Mode.EDGE, max_tokens=limit))).tokens) <= limit

    asyncio.run(run())


def test_the_context_is_the_last_limit(
    target: Bundle, drafter: Bundle, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question that leaves room for a few tokens gets those, from drafter, worker and reference."""
    context = drafter.manifest.decoder.context
    text = "?"

    def room(words: str) -> int:
        """Tokens that are left for an answer; negative where the question alone is too long."""
        try:
            return context - len(PromptBuilder.open(drafter).build([question(words)], [(0, 0)]).ids)
        except PromptError:
            return -1

    while room(text + "?!") > 2:
        text += "?!"

    async def run() -> None:
        async with together(target, drafter) as agent:
            asked = Question.about(ASKED[0].image, text, mode=Mode.CLOUD)
            cloud = await agent.answer(asked)
            assert 1 <= len(cloud.tokens) <= room(text)
            for mode in (Mode.DRAFT, Mode.EDGE):
                answer = await agent.answer(msgspec.structs.replace(asked, mode=mode))
                assert len(answer.tokens) <= room(text)
                assert mode is Mode.EDGE or ids(answer) == ids(cloud)
            with pytest.raises(PromptError, match="ask a shorter question"):
                await agent.answer(Question.about(ASKED[0].image, text * 2, mode=Mode.CLOUD))

    asyncio.run(run())


def test_many_questions_at_once(target: Bundle, drafter: Bundle, reference: Reference) -> None:
    async def run() -> None:
        async with together(target, drafter, slots=24) as agent:
            modes = (Mode.EDGE, Mode.CLOUD, Mode.DRAFT)
            asked = [(request, mode) for request in ASKED[:6] for mode in modes]
            answers = await asyncio.gather(*(agent.answer(asking(request, mode)) for request, mode in asked))
            alone = [await agent.answer(asking(request, Mode.EDGE)) for request, mode in asked if mode is Mode.EDGE]
            for (request, mode), answer in zip(asked, answers, strict=True):
                if mode is not Mode.EDGE:
                    assert ids(answer) == reference.answer(request.image, request.question.text)
            together_ = [answer for (_, mode), answer in zip(asked, answers, strict=True) if mode is Mode.EDGE]
            assert list(map(ids, together_)) == list(map(ids, alone))

    asyncio.run(run())


def blocked(release: threading.Event) -> Draft:
    """A drafter that says nothing until it is released: with effort 0 its session stays open that long."""

    def draft(self: Drafting, answer: Sequence[int], limit: int) -> Iterator[Drafted]:
        release.wait(30)
        yield Drafted(20, 0.5)

    return draft


def test_a_full_worker_refuses_and_serves_again_once_there_is_room(
    target: Bundle, drafter: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    async def run() -> None:
        async with together(target, drafter, slots=1) as agent:
            truth = ids(await agent.answer(asking(LONGEST, Mode.CLOUD)))
            monkeypatch.setattr(Drafting, "draft", blocked(release))
            waiting = asyncio.create_task(agent.answer(asking(LONGEST, Mode.DRAFT, effort=0.0)))
            await asyncio.sleep(0.5)  # the session above has the only slot by then
            with pytest.raises(WorkerBusy, match="try again"):
                await agent.answer(asking(LONGEST, Mode.CLOUD))
            release.set()
            assert ids(await waiting) == truth
            monkeypatch.undo()
            for attempt in range(50):  # the slot is free a moment after the answer
                try:
                    assert ids(await agent.answer(asking(LONGEST, Mode.CLOUD))) == truth
                except WorkerBusy:
                    assert attempt < 49
                    await asyncio.sleep(0.05)
                else:
                    break

    asyncio.run(run())


@pytest.mark.threat("floods")
@pytest.mark.parametrize("mode", [Mode.EDGE, Mode.AUTO, Mode.DRAFT])
def test_nothing_is_drafted_for_who_is_gone(drafter: Bundle, monkeypatch: pytest.MonkeyPatch, mode: Mode) -> None:
    drawn, begun = list[int](), threading.Event()

    def draft(self: Drafting, answer: Sequence[int], limit: int) -> Iterator[Drafted]:
        for token in range(20, 20 + limit):
            time.sleep(0.01)
            drawn.append(token)
            if len(drawn) == 3:
                begun.set()
            yield Drafted(token, 0.5)

    monkeypatch.setattr(Drafting, "draft", draft)

    async def run() -> int:
        async with Agent(drafter, worker="127.0.0.1:1", threads=1) as agent:
            waiting = asyncio.create_task(agent.answer(asking(LONGEST, mode, max_tokens=100)))
            await asyncio.to_thread(begun.wait, 10)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            ended = len(drawn)
            await asyncio.sleep(0.1)
            return ended

    ended = asyncio.run(run())
    assert 3 <= ended == len(drawn) < 20


def test_a_question_given_up_frees_its_place(target: Bundle, drafter: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    async def run() -> None:
        async with together(target, drafter, slots=1) as agent:
            honest = Drafting.draft
            monkeypatch.setattr(Drafting, "draft", blocked(release))
            waiting = asyncio.create_task(agent.answer(asking(LONGEST, Mode.DRAFT, effort=0.0)))
            await asyncio.sleep(0.3)
            waiting.cancel()
            await asyncio.sleep(0.05)
            assert not waiting.done(), "its thread has not ended"
            release.set()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            monkeypatch.setattr(Drafting, "draft", honest)
            for _ in range(50):
                try:
                    answer = await agent.answer(asking(LONGEST, Mode.DRAFT))
                except WorkerBusy:
                    await asyncio.sleep(0.05)
                else:
                    check_account(answer)
                    return
            pytest.fail("the place was never freed")

    asyncio.run(run())


@pytest.mark.parametrize("mode", [Mode.CLOUD, Mode.DRAFT])
def test_a_mode_that_needs_a_worker_says_so(drafter: Bundle, mode: Mode) -> None:
    async def run() -> None:
        async with Agent(drafter, worker=None, threads=1) as agent:
            with pytest.raises(InputError, match="needs a worker"):
                await agent.answer(asking(LONGEST, mode))

    asyncio.run(run())


def test_nobody_at_the_address(drafter: Bundle) -> None:
    async def run() -> None:
        async with asyncio.timeout(15), Agent(drafter, worker="127.0.0.1:1", threads=1) as agent:
            with pytest.raises(WorkerUnavailable, match=r"127\.0\.0\.1:1"):
                await agent.answer(asking(LONGEST, Mode.CLOUD))

    asyncio.run(run())


@pytest.mark.parametrize("address", ["", "host", ":50051", "host:", "host:http", "host:0", "host:70000", "unix:/tmp/x"])
def test_what_is_no_address(drafter: Bundle, address: str) -> None:
    with pytest.raises(InputError, match="HOST:PORT"):
        Agent(drafter, worker=address, threads=1)


def test_a_worker_of_another_model(target: Bundle, drafter: Bundle) -> None:
    other = Bundle(drafter.path, msgspec.structs.replace(drafter.manifest, target="0" * 64))

    async def run() -> None:
        async with together(target, other) as agent:
            with pytest.raises(ModelMismatch, match="000000000000"):
                await agent.answer(asking(LONGEST, Mode.CLOUD))
            assert not (await agent.answer(asking(LONGEST, Mode.EDGE))).exact

    asyncio.run(run())


def test_a_drafter_without_a_target(target: Bundle, drafter: Bundle) -> None:
    alone = Bundle(drafter.path, msgspec.structs.replace(drafter.manifest, target=None))

    async def run() -> None:
        async with Agent(alone, worker="127.0.0.1:1", threads=1) as agent:
            with pytest.raises(BundleError, match="without a target"):
                await agent.answer(asking(LONGEST, Mode.CLOUD))

    asyncio.run(run())


def test_a_targets_bundle_makes_no_agent(target: Bundle) -> None:
    with pytest.raises(BundleError, match="drafter"):
        Agent(target, worker=None, threads=1)


def test_a_worker_that_never_answers_is_given_up_in_time(drafter: Bundle) -> None:
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            async with Agent(drafter, worker=f"127.0.0.1:{silent.getsockname()[1]}", threads=1) as agent:
                with pytest.raises(WorkerUnavailable, match="in time"):
                    await agent.answer(asking(LONGEST, Mode.CLOUD, timeout=0.5))

    asyncio.run(run())


@pytest.mark.parametrize("mode", [Mode.EDGE, Mode.CLOUD, Mode.DRAFT, Mode.AUTO])
def test_a_bad_image_is_refused_before_anything_is_sent(drafter: Bundle, mode: Mode) -> None:
    async def run() -> None:
        async with Agent(drafter, worker="127.0.0.1:1", threads=1) as agent:
            with pytest.raises(ImageError):
                await agent.answer(Question.about(b"no image", "What?", mode=mode))

    asyncio.run(run())


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"text": ""}, PromptError),
        ({"text": " \n"}, PromptError),
        ({"text": "\udcff"}, PromptError),
        ({"effort": -0.1}, InputError),
        ({"effort": float("nan")}, InputError),
        ({"max_tokens": 0}, InputError),
        ({"mode": Mode.SPLIT}, InputError),
        ({"mode": Mode.CLOUD, "cut": "decoder.2"}, InputError),
        ({"mode": Mode.EDGE, "cut": "decoder.2"}, InputError),
        ({"mode": Mode.DRAFT, "cut": "decoder.2", "keep_image_tokens": 0.0}, InputError),
        ({"mode": Mode.DRAFT, "cut": "decoder.2", "keep_image_tokens": 1.1}, InputError),
        ({"mode": Mode.DRAFT, "cut": "decoder.2", "keep_image_tokens": float("nan")}, InputError),
        ({"mode": Mode.DRAFT, "cut": "vision.1", "keep_image_tokens": 0.5}, InputError),
        ({"mode": Mode.DRAFT, "keep_image_tokens": 0.5}, InputError),
        ({"timeout": 0.0}, InputError),
        ({"timeout": float("nan")}, InputError),
        ({"timeout": float("inf")}, InputError),
    ],
)
def test_a_question_that_cannot_be_asked(options: dict[str, object], kind: type[Exception]) -> None:
    asked: dict[str, object] = {"image": b"", "text": "What?"}
    with pytest.raises(kind):
        Question.about(**(asked | options))  # type: ignore[arg-type]


def test_the_demos_bundles_belong_together(target: Bundle, drafter: Bundle) -> None:
    assert drafter.manifest.target == target.manifest.identity
    assert Path(TARGET, "tokenizer.json").read_bytes() == Path(DRAFTER, "tokenizer.json").read_bytes()
