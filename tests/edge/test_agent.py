"""Agents with a real worker: the same answer in every mode, within every limit, and many of them at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image

from cutline.core.conversation import question
from cutline.core.request import DRAFT_CHUNK, Mode, Request
from cutline.core.sampling import Sampling
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.reference import Reference
from cutline.demo.requests import requests
from cutline.edge.agent import Agent, AgentSettings
from cutline.edge.generation.result import Ending
from cutline.edge.inference.drafter import Drafted, DraftSource
from cutline.errors import (
    PromptError,
    WorkerBusy,
)
from cutline.models.bundle import Bundle
from cutline.models.prompt import PromptBuilder
from cutline.protos.client import WorkerClient
from cutline.testing.drafter import Script, ScriptedDrafter
from cutline.testing.together import asking, check_account, ids, together

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


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def test_pictures_as_phones_make_them_give_the_unsplit_targets_tokens(
    target: Bundle, drafter: Bundle, reference: Reference
) -> None:
    """Also those that a worker does not read: what the model sees of them travels."""
    card, text = Image.open(BytesIO(LONGEST.image)).convert("RGB"), LONGEST.question.text
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = card.transpose(Image.Transpose.ROTATE_90)
    large = turned.resize((4900, 4900), Image.Resampling.NEAREST)
    pictures = {
        "24 megapixels": saved(large, "JPEG", exif=exif.tobytes(), quality=90),
        "turned": saved(turned, "JPEG", exif=exif.tobytes(), quality=97),
        "with a second one": saved(card, "MPO", save_all=True, append_images=[turned], quality=97),
        "CMYK": saved(card.convert("CMYK"), "JPEG", quality=97),
        **{kind: saved(card, kind) for kind in ("AVIF", "BMP", "GIF")},
    }

    async def run() -> None:
        async with together(target, drafter) as agent:
            for name, picture in pictures.items():
                answer = await agent.answer(Request.about(picture, text, mode=Mode.CLOUD))
                assert ids(answer) == reference.answer(picture, text), name
                assert (answer.exact, answer.reduced_images) == (True, int(name == "24 megapixels"))

    asyncio.run(run())


HOW: list[dict[str, Any]] = [
    {"temperature": 0.8, "top_p": 0.95},
    {"temperature": 1.2, "min_p": 0.05},
    {"temperature": 0.8, "top_k": 9, "presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"temperature": 0.7, "repetition_penalty": 1.3, "logit_bias": ((270, 3.0), (5, -100.0))},
    {"frequency_penalty": 2.0, "presence_penalty": -1.0},
    {"repetition_penalty": 3.0},
]


def test_sampled_answers_are_identical_in_every_mode(target: Bundle, drafter: Bundle) -> None:
    async def run() -> None:
        async with together(target, drafter) as agent:
            for seed, (request, more) in enumerate(zip(ASKED, HOW, strict=False)):
                sampling = Sampling(seed=seed, **more)
                cloud = await agent.answer(asking(request, Mode.CLOUD, sampling=sampling))
                for effort in EFFORTS:
                    draft = await agent.answer(asking(request, Mode.DRAFT, sampling=sampling, effort=effort))
                    assert ids(draft) == ids(cloud)
                auto = await agent.answer(asking(request, Mode.AUTO, sampling=sampling))
                assert auto.exact, "the gate was calibrated for plain greedy answers alone"
                assert ids(auto) == ids(cloud)

    asyncio.run(run())


def test_an_answer_ends_at_the_tokens_that_a_request_names_in_every_mode(target: Bundle, drafter: Bundle) -> None:
    """Before the model's own end, and the token itself is the last one, as that is."""

    async def run() -> None:
        async with together(target, drafter) as agent:
            whole = await agent.answer(asking(LONGEST, Mode.CLOUD))
            for place in (0, 3, len(ids(whole)) - 2):
                named = ids(whole)[place]
                expected = ids(whole)[: ids(whole).index(named) + 1]
                sampling = Sampling(stop_token_ids=(named, 422))
                for mode, effort in ((Mode.CLOUD, 1.0), (Mode.DRAFT, 0.0), (Mode.DRAFT, 1.0), (Mode.AUTO, 0.0)):
                    answer = await agent.answer(asking(LONGEST, mode, sampling=sampling, effort=effort))
                    assert (ids(answer), answer.ending, answer.exact) == (expected, Ending.STOP, True), (mode, effort)
                    assert answer.text == "".join(token.text for token in whole.tokens[: len(expected)])
            alone = await agent.answer(asking(LONGEST, Mode.EDGE))
            named = ids(alone)[2]
            short = await agent.answer(asking(LONGEST, Mode.EDGE, sampling=Sampling(stop_token_ids=(named,))))
            assert (ids(short), short.ending) == (ids(alone)[: ids(alone).index(named) + 1], Ending.STOP)

    asyncio.run(run())


def test_effort_is_of_no_account_without_drafts(target: Bundle, drafter: Bundle) -> None:
    """A worker that may not decode alone would wait for drafts that mode `cloud` never sends."""

    async def run() -> None:
        async with asyncio.timeout(20), together(target, drafter) as agent:
            asked = [asking(LONGEST, Mode.CLOUD, effort=effort) for effort in EFFORTS]
            first, *others = [await agent.answer(question) for question in asked]
            assert all(ids(answer) == ids(first) and answer.complete for answer in others)

    asyncio.run(run())


def test_a_drafter_that_breaks_ends_the_question_at_once(target: Bundle, drafter: Bundle) -> None:
    def broken(honest: DraftSource, answer: Sequence[int], limit: int) -> Iterator[Drafted]:
        raise RuntimeError("out of memory")

    async def run() -> None:
        async with asyncio.timeout(20), together(target, drafter, open_drafter=ScriptedDrafter(broken)) as agent:
            with pytest.raises(RuntimeError, match="out of memory"):
                await agent.answer(asking(LONGEST, Mode.DRAFT, effort=0.0))

    asyncio.run(run())


@pytest.mark.parametrize("limit", [1, 2, 3, DRAFT_CHUNK + 1])
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
            asked = Request.about(ASKED[0].image, text, mode=Mode.CLOUD)
            cloud = await agent.answer(asked)
            assert 1 <= len(cloud.tokens) <= room(text)
            for mode in (Mode.DRAFT, Mode.EDGE):
                answer = await agent.answer(msgspec.structs.replace(asked, mode=mode))
                assert len(answer.tokens) <= room(text)
                assert mode is Mode.EDGE or ids(answer) == ids(cloud)
            with pytest.raises(PromptError, match="ask a shorter question"):
                await agent.answer(Request.about(ASKED[0].image, text * 2, mode=Mode.CLOUD))

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


def blocked(release: threading.Event, begun: threading.Event | None = None) -> Script:
    """A drafter that says nothing until it is released: with effort 0 its session stays open that long."""

    def draft(honest: DraftSource, answer: Sequence[int], limit: int) -> Iterator[Drafted]:
        if begun is not None:
            begun.set()
        release.wait(30)
        yield Drafted(20, 0.5)

    return draft


def test_a_full_worker_refuses_and_serves_again_once_there_is_room(target: Bundle, drafter: Bundle) -> None:
    release, drafts = threading.Event(), ScriptedDrafter()

    async def run() -> None:
        async with together(target, drafter, slots=1, open_drafter=drafts) as agent:
            truth = ids(await agent.answer(asking(LONGEST, Mode.CLOUD)))
            drafts.script = blocked(release)
            async with asyncio.timeout(60), WorkerClient(agent.workers.states[0].address) as worker:
                while (await worker.describe()).sessions:  # the slot is free a moment after the answer
                    pass
                waiting = asyncio.create_task(agent.answer(asking(LONGEST, Mode.DRAFT, effort=0.0, store=False)))
                while not (await worker.describe()).sessions:  # and not taken at once
                    pass
            with pytest.raises(WorkerBusy, match="try again"):
                await agent.answer(asking(LONGEST, Mode.CLOUD))
            release.set()
            assert ids(await waiting) == truth
            drafts.script = None
            async with asyncio.timeout(60):
                while True:  # the slot is free a moment after the answer
                    try:
                        assert ids(await agent.answer(asking(LONGEST, Mode.CLOUD))) == truth
                    except WorkerBusy:
                        await asyncio.sleep(0.05)
                    else:
                        break

    asyncio.run(run())


@pytest.mark.threat("floods")
@pytest.mark.parametrize("mode", [Mode.EDGE, Mode.AUTO, Mode.DRAFT])
def test_nothing_is_drafted_for_who_is_gone(drafter: Bundle, mode: Mode) -> None:
    drawn, begun, left = list[int](), threading.Event(), threading.Event()

    def draft(honest: DraftSource, answer: Sequence[int], limit: int) -> Iterator[Drafted]:
        for token in range(20, 20 + limit):
            drawn.append(token)
            if len(drawn) == 3:
                begun.set()
                left.wait(60)
            yield Drafted(token, 0.5)

    settings = AgentSettings(open_drafter=ScriptedDrafter(draft))

    async def run() -> int:
        async with Agent(drafter, worker="127.0.0.1:1", threads=1, settings=settings) as agent:
            waiting = asyncio.create_task(agent.answer(asking(LONGEST, mode, max_tokens=100)))
            assert await asyncio.to_thread(begun.wait, 60)
            waiting.cancel()
            for _ in range(100):  # it hears of that, and then its drafter goes on
                await asyncio.sleep(0)
            left.set()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            ended = len(drawn)
            await asyncio.sleep(0.1)
            return ended

    ended = asyncio.run(run())
    assert ended == len(drawn) == 3


def test_a_question_given_up_frees_its_place(target: Bundle, drafter: Bundle) -> None:
    begun, release = threading.Event(), threading.Event()
    drafts = ScriptedDrafter(blocked(release, begun))

    async def run() -> None:
        async with together(target, drafter, slots=1, open_drafter=drafts) as agent:
            waiting = asyncio.create_task(agent.answer(asking(LONGEST, Mode.DRAFT, effort=0.0)))
            assert await asyncio.to_thread(begun.wait, 30)
            waiting.cancel()
            await asyncio.sleep(0.05)
            assert not waiting.done(), "its thread has not ended"
            release.set()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            drafts.script = None
            async with asyncio.timeout(60):
                while True:
                    try:
                        check_account(await agent.answer(asking(LONGEST, Mode.DRAFT)))
                    except WorkerBusy:
                        await asyncio.sleep(0.05)
                    else:
                        break

    asyncio.run(run())


def test_the_demos_bundles_belong_together(target: Bundle, drafter: Bundle) -> None:
    assert drafter.manifest.target == target.manifest.identity
    assert Path(TARGET, "tokenizer.json").read_bytes() == Path(DRAFTER, "tokenizer.json").read_bytes()
