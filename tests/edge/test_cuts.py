"""Every cut of the target: its first layers here, the rest on a worker, against transformers' unsplit model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import msgspec
import pytest

from cutline.cloud.worker import Worker
from cutline.core.request import Mode, Request
from cutline.core.sampling import Sampling
from cutline.core.wire import Wire, bytes_per_row
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.reference import Reference
from cutline.demo.requests import requests
from cutline.edge.agent import Agent, AgentSettings
from cutline.edge.generation.gate import Gate
from cutline.edge.generation.result import Answer, Provenance
from cutline.edge.inference.drafter import Drafted, Drafter, DraftSource, OpenDrafter
from cutline.edge.inference.target_prefix import TargetSpan
from cutline.errors import CutlineError, InputError, ModelMismatch
from cutline.models.bundle import Bundle
from cutline.testing.drafter import Script, ScriptedDrafter
from cutline.testing.worker import NEVER, gated, keeps_from

BUNDLE = Bundle.open(TARGET, "device")
LINE = BUNDLE.manifest.line
CUTS = LINE.layers[1:]
ASKED = list(requests(Split.EVALUATION, 2, seed=11))[::3]
LONGEST = next(one for one in requests(Split.EVALUATION, 2, seed=11) if one.question.kind == "describe")
MODES = (Mode.SPLIT, Mode.DRAFT, Mode.AUTO)
Truth = Callable[[bytes, str], tuple[int, ...]]


@pytest.fixture(scope="module")
def truth() -> Truth:
    """The unsplit target's answer to a question about an image, made once."""
    return cache(Reference(Bundle.open(TARGET)).answer)


@pytest.fixture(scope="module")
def worker() -> Iterator[str]:
    with Worker(Bundle.open(TARGET)) as here:
        yield here.address


@pytest.fixture(scope="module")
def small() -> Iterator[tuple[str, int]]:
    """A worker whose sessions hold fewer tokens than the longest question and its answer, and how many."""
    with Worker(Bundle.open(TARGET), context=40) as here:
        address = here.address
        yield address, 40


def ask(
    worker: str | None,
    questions: Sequence[Request],
    *,
    target: Bundle | None = BUNDLE,
    gate: Gate = NEVER,
    drafts: OpenDrafter = Drafter.open,
) -> list[Answer]:
    """The answers of one agent."""

    async def run() -> list[Answer]:
        drafter, settings = gated(Bundle.open(DRAFTER), gate), AgentSettings(open_drafter=drafts)
        async with Agent(drafter, worker=worker, threads=1, target=target, settings=settings) as agent:
            return [await agent.answer(question) for question in questions]

    return asyncio.run(run())


def ids(answer: Answer) -> tuple[int, ...]:
    return tuple(token.id for token in answer.tokens)


@pytest.mark.parametrize(
    ("cut", "mode"), [("vision.1", Mode.SPLIT), ("decoder.0", Mode.AUTO), ("decoder.2", Mode.DRAFT)]
)
def test_with_noise_an_answer_is_not_called_exact(cut: str, mode: Mode, worker: str) -> None:
    one = LONGEST
    answers = ask(
        worker,
        [Request.about(one.image, one.question.text, mode=mode, cut=cut, noise=share) for share in (0.0, 1e-6, 5.0)],
    )
    assert [answer.exact for answer in answers] == [True, False, False]
    assert ids(answers[0]) == ids(answers[1]) != ids(answers[2])
    assert {answer.cut for answer in answers} == {cut}


@pytest.mark.parametrize(
    ("cut", "mode"),
    [("connector", Mode.SPLIT), ("decoder.1", Mode.SPLIT), ("decoder.1", Mode.DRAFT), ("image", Mode.CLOUD)],
)
def test_an_answer_that_reaches_the_workers_context_ends_with_what_there_is(
    cut: str, mode: Mode, small: tuple[str, int], truth: Truth
) -> None:
    address, context = small
    question = Request.about(LONGEST.image, LONGEST.question.text, mode=mode, cut=cut)
    (answer,) = ask(address, [question])
    whole = truth(LONGEST.image, LONGEST.question.text)
    assert ids(answer) == whole[: context - answer.prompt_tokens] != whole
    assert (answer.complete, answer.exact, answer.lost, answer.tail) == (False, True, (), None)


def wrong_in_places(every: int) -> Script:
    """The drafter as it is, with every so many tokens replaced."""

    def draft(honest: DraftSource, answer: Sequence[int], limit: int) -> Iterator[Drafted]:
        for index, one in enumerate(honest.draft(answer, limit), start=len(answer)):
            yield Drafted(one.token % 100 + 100, 0.5) if index % every == every - 1 else one

    return draft


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_changes_no_token(cut: str, mode: Mode, worker: str, truth: Truth) -> None:
    truths = [truth(one.image, one.question.text) for one in ASKED]
    answers = ask(worker, [Request.about(one.image, one.question.text, mode=mode, cut=cut) for one in ASKED])
    assert [ids(answer) for answer in answers] == truths
    for answer in answers:
        assert (answer.exact, answer.cut, answer.wire, answer.mode) == (True, cut, Wire.FLOAT32, mode)
        assert answer.complete
        assert answer.accepted == sum(token.source is Provenance.DRAFT for token in answer.tokens) <= answer.drafted
    # A worker that decodes faster than the drafter leaves a short answer nothing to draft.
    assert any(answer.drafted for answer in answers) == (mode is not Mode.SPLIT)


@pytest.mark.parametrize("every", [2, 5])
@pytest.mark.parametrize("cut", LINE.deep_cuts)
def test_wrong_drafts_change_no_token(cut: str, every: int, worker: str, truth: Truth) -> None:
    drafts = ScriptedDrafter(wrong_in_places(every))
    truths = [truth(one.image, one.question.text) for one in ASKED[:3]]
    for mode in (Mode.DRAFT, Mode.AUTO):
        asked = [Request.about(one.image, one.question.text, mode=mode, cut=cut) for one in ASKED[:3]]
        assert [ids(answer) for answer in ask(worker, asked, drafts=drafts)] == truths


@pytest.mark.parametrize("cut", ["decoder.0", "decoder.2", "head"])
def test_sampled_tokens_are_those_of_the_uncut_target(cut: str, worker: str) -> None:
    for seed, one in enumerate(ASKED[:3]):
        sampling = Sampling(temperature=0.8, top_p=0.95, seed=seed)
        whole = Request.about(one.image, one.question.text, mode=Mode.CLOUD, sampling=sampling)
        cuts = [msgspec.structs.replace(whole, mode=mode, cut=cut) for mode in (Mode.SPLIT, Mode.DRAFT)]
        uncut, *others = ask(worker, [whole, *cuts])
        assert [ids(answer) for answer in others] == [ids(uncut)] * 2


def test_a_round_verifies_a_whole_draft_also_inside_the_decoder(worker: str, truth: Truth) -> None:
    asked = [Request.about(one.image, "Describe the card.", mode=Mode.DRAFT, cut="decoder.2") for one in ASKED]
    drafted = ask(worker, asked)
    split = ask(worker, [msgspec.structs.replace(one, mode=Mode.SPLIT) for one in asked])
    assert all(answer.rounds == len(answer.tokens) for answer in split)
    tokens, rounds = sum(len(answer.tokens) for answer in drafted), sum(answer.rounds for answer in drafted)
    assert tokens == sum(answer.rounds for answer in split)
    assert rounds < tokens / 3


def test_a_draft_that_is_right_is_verified_in_one_round(worker: str, truth: Truth) -> None:
    right = truth(LONGEST.image, LONGEST.question.text)

    def foreseen(honest: DraftSource, answer: Sequence[int], limit: int) -> Iterator[Drafted]:
        yield from (Drafted(token, 1.0) for token in right[len(answer) : len(answer) + limit])

    for cut in LINE.deep_cuts:
        question = Request.about(LONGEST.image, LONGEST.question.text, mode=Mode.AUTO, cut=cut)
        (answer,) = ask(worker, [question], drafts=ScriptedDrafter(foreseen))
        assert ids(answer) == right
        assert (answer.rounds, answer.accepted) == (1, len(right))


@pytest.mark.parametrize("wire", list(Wire))
@pytest.mark.parametrize("cut", ["vision.2", "decoder.2"])
def test_bytes_are_those_of_the_format_and_narrow_ones_are_not_called_exact(cut: str, wire: Wire, worker: str) -> None:
    one = ASKED[0]
    asked = Request.about(one.image, one.question.text, mode=Mode.SPLIT, cut=cut, wire=wire)
    (answer,) = ask(worker, [asked])
    (image,) = ask(worker, [msgspec.structs.replace(asked, mode=Mode.CLOUD, cut="image", wire=Wire.FLOAT32)])
    row = bytes_per_row(wire, 128)
    if cut == "vision.2":
        assert 64 * row < answer.bytes_up < 64 * row + 500
    else:  # a row of every token but the last, and what is around it
        prompt, answered = 16, len(answer.tokens) - 1
        assert (prompt + answered) * row < answer.bytes_up < (100 + answered) * (row + 40)
    assert answer.exact == (wire is Wire.FLOAT32)
    assert answer.wire is wire
    assert image.wire is None
    assert answer.complete


@pytest.mark.parametrize("cut", ["decoder.0", "decoder.1", "head"])
def test_merged_image_tokens_are_fewer_and_not_called_exact(cut: str, worker: str) -> None:
    one = ASKED[0]
    whole = Request.about(one.image, one.question.text, mode=Mode.SPLIT, cut=cut)
    half = msgspec.structs.replace(whole, keep_image_tokens=0.5)
    drafted = msgspec.structs.replace(half, mode=Mode.DRAFT)
    full, fewer, with_drafts = ask(worker, [whole, half, drafted])
    assert full.exact
    assert not fewer.exact
    saved = full.bytes_up - fewer.bytes_up
    if ids(full) == ids(fewer):
        assert 8 * bytes_per_row(Wire.FLOAT32, 128) <= saved < 8 * bytes_per_row(Wire.FLOAT32, 128) + 100
    assert ids(with_drafts) == ids(fewer), "drafts change no token there either"


def test_sampled_drafts_are_right_though_the_targets_prompt_is_shorter(
    worker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The law counts positions in the target's prompt: a drafter with its own count would be wrong by chance."""
    asked = [
        Request.about(
            one.image,
            "Describe the card.",
            mode=mode,
            cut="decoder.0",
            keep_image_tokens=0.9,
            effort=0.0,
            sampling=Sampling(temperature=0.5, seed=seed),
        )
        for seed, one in enumerate(ASKED)
        for mode in (Mode.SPLIT, Mode.DRAFT)
    ]
    answers = ask(worker, asked)
    assert [ids(one) for one in answers[0::2]] == [ids(one) for one in answers[1::2]]
    tokens = sum(len(one.tokens) for one in answers[1::2])
    assert sum(one.accepted for one in answers[1::2]) > tokens / 2


def test_a_kept_answer_cuts_nothing() -> None:
    asked = Request.about(ASKED[0].image, "Which?", mode=Mode.AUTO, cut="decoder.2")
    (answer,) = ask(None, [asked], gate=keeps_from(0.0))
    assert (answer.cut, answer.wire, answer.worker, answer.rounds, answer.exact) == (None, None, None, 0, False)


@pytest.mark.parametrize("cut", ["decoder.0", "decoder.2"])
def test_quantized_layers_are_not_called_exact(cut: str, worker: str) -> None:
    quantized = Bundle(BUNDLE.path, msgspec.structs.replace(BUNDLE.manifest, precision="int8"), "device")
    drafter = Bundle.open(DRAFTER)

    async def run() -> Answer:
        # Its identity is another, as that of a bundle exported so would be; the worker's is what the drafter says.
        async with Agent(drafter, worker=worker, threads=1, target=BUNDLE) as agent:
            agent._backends.models.target = quantized.manifest
            return await agent.answer(Request.about(ASKED[0].image, "Which?", mode=Mode.SPLIT, cut=cut))

    assert asyncio.run(run()).exact == (cut == "decoder.0")


@pytest.mark.parametrize(
    ("cut", "target", "error", "words"),
    [
        ("vision.9", BUNDLE, InputError, "no cut 'vision.9'; cuts: image, vision.0"),
        ("decoder.4", BUNDLE, InputError, "no cut 'decoder.4'"),
        ("vision.1", None, InputError, "--target"),
        ("decoder.1", None, InputError, "--target"),
        ("decoder.1", Bundle.open(DRAFTER), ModelMismatch, "another target"),
    ],
)
def test_what_cannot_be_cut_is_refused(cut: str, target: Bundle | None, error: type[CutlineError], words: str) -> None:
    question = Request.about(ASKED[0].image, "Read the digits.", mode=Mode.SPLIT, cut=cut)
    with pytest.raises(error, match=words):
        ask("127.0.0.1:1", [question], target=target)


def test_an_agent_keeps_spans_and_loads_each_once(worker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = list[str]()
    load = TargetSpan.open

    def counted(bundle: Bundle, cut: str, **options: Any) -> TargetSpan:
        loaded.append(cut)
        return load(bundle, cut, **options)

    monkeypatch.setattr(TargetSpan, "open", counted)

    async def run() -> None:
        async with Agent(Bundle.open(DRAFTER), worker=worker, threads=1, target=BUNDLE) as agent:
            for cut in ("decoder.2", "vision.1", "connector", "decoder.2"):
                question = Request.about(ASKED[0].image, ASKED[0].question.text, mode=Mode.SPLIT, cut=cut)
                answers = await asyncio.gather(*[agent.answer(question) for _ in range(4)])
                assert len({ids(answer) for answer in answers}) == 1

    asyncio.run(run())
    assert loaded == ["decoder.2", "vision.1", "connector"]
