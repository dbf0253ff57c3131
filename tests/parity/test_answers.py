"""A second family through the whole of it: agent, workers and a chain answer as transformers' `generate` does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cutline.cloud.worker import Worker
from cutline.core.conversation import ImagePart, Message, TextPart, question
from cutline.core.request import Mode, Request
from cutline.edge.agent import Agent
from cutline.edge.generation import preprocess
from cutline.edge.generation.result import Answer
from cutline.errors import InputError
from cutline.models.bundle import Bundle
from cutline.models.export import export_bundle
from cutline.models.images import decode_image
from cutline.models.layerline import END
from cutline.models.prompt import PromptBuilder
from cutline.testing.models.comparison import Prompt, Whole, quantized
from cutline.testing.models.small_models import SMALL

WORDS, LENGTH = "How many?", 20


@pytest.fixture(scope="module")
def drafter(qwen: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return quantized(qwen, tmp_path_factory.mktemp("drafter") / "out")


@pytest.fixture(scope="module")
def worker(qwen: Bundle) -> Iterator[str]:
    with Worker(qwen) as here:
        yield here.address


@pytest.fixture(scope="module")
def image() -> bytes:
    out = BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (150, 210, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def expected(qwen: Bundle, image: bytes) -> list[int]:
    pixels = qwen.manifest.family.preprocess(decode_image(image))
    ids = PromptBuilder.open(qwen).build([question(WORDS)], [pixels.grid]).ids
    return Whole(qwen).answer(Prompt(ids, (pixels,)), LENGTH)


def ask(drafter: Bundle, target: Bundle, worker: str, *asked: Request) -> list[Answer]:
    async def answers() -> list[Answer]:
        async with Agent(drafter, worker=worker, threads=1, target=target) as agent:
            return [await agent.answer(one) for one in asked]

    return asyncio.run(answers())


WAYS = [
    (Mode.CLOUD, "image"),
    *((Mode.SPLIT, cut) for cut in ("vision.0", "vision.3", "connector", "decoder.0", "decoder.5", "head")),
    *((Mode.DRAFT, cut) for cut in ("image", "vision.3", "decoder.0", "decoder.5")),
]


def test_every_mode_and_cut_gives_the_targets_own_tokens(
    qwen: Bundle, drafter: Bundle, worker: str, image: bytes, expected: list[int]
) -> None:
    asked = [
        # What is drafted is waited for: who is faster is the machine's, not the models'.
        Request.about(image, WORDS, mode=mode, cut=cut, max_tokens=LENGTH, effort=float(mode is not Mode.DRAFT))
        for mode, cut in WAYS
    ]
    for (mode, cut), answer in zip(WAYS, ask(drafter, qwen, worker, *asked), strict=True):
        assert [token.id for token in answer.tokens] == expected, (mode, cut)
        assert answer.exact
        assert (answer.accepted > LENGTH / 2) == (mode is Mode.DRAFT)


def test_fewer_image_tokens_are_those_of_a_smaller_picture(
    qwen: Bundle, drafter: Bundle, worker: str, image: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every mode: what is looked at is what travels."""
    family = qwen.manifest.family
    assert family.tokens(family.grid((210, 150))) == 40
    assert family.within((210, 150), 12) == (112, 84)
    pixels = family.preprocess(family.resize(decode_image(image), (112, 84)))
    ids = PromptBuilder.open(qwen).build([question(WORDS)], [pixels.grid]).ids
    expected = Whole(qwen).answer(Prompt(ids, (pixels,)), 8)
    monkeypatch.setattr(preprocess, "LOW_TOKENS", 12)
    low = (Message("user", (ImagePart("low"), TextPart(WORDS))),)
    asked = [
        *(
            Request.about(image, WORDS, mode=mode, cut=cut, max_tokens=8, image_tokens=12)
            for mode, cut in ((Mode.CLOUD, "image"), (Mode.SPLIT, "decoder.0"), (Mode.DRAFT, "vision.3"))
        ),
        Request(messages=low, images=(image,), mode=Mode.CLOUD, max_tokens=8),
        Request.about(image, WORDS, mode=Mode.CLOUD, max_tokens=8),
    ]
    *smaller, whole = ask(drafter, qwen, worker, *asked)
    for answer in smaller:
        assert [token.id for token in answer.tokens] == expected
        assert (answer.exact, answer.reduced_images) == (True, 1)
        assert whole.prompt_tokens - answer.prompt_tokens == 40 - 12
        assert answer.gate is not None
        assert "smaller pictures" in answer.gate.group, "for which no gate is calibrated"
    assert whole.reduced_images == 0
    with pytest.raises(InputError, match="cannot have 3 image tokens or fewer"):
        ask(drafter, qwen, worker, Request.about(image, WORDS, mode=Mode.CLOUD, image_tokens=3))


def test_a_chain_of_workers_gives_them_too(qwen: Bundle, drafter: Bundle, image: bytes, expected: list[int]) -> None:
    asked = [
        Request.about(image, WORDS, mode=mode, cut=cut, max_tokens=LENGTH)
        for mode, cut in ((Mode.CLOUD, "image"), (Mode.DRAFT, "vision.1"))
    ]
    with (
        Worker(qwen, layers=("decoder.3", END)) as last,
        Worker(qwen, layers=("vision.3", "decoder.3"), next_worker=last.address) as middle,
        Worker(qwen, layers=("image", "vision.3"), next_worker=middle.address) as first,
    ):
        for answer in ask(drafter, qwen, first.address, *asked):
            assert [token.id for token in answer.tokens] == expected


@pytest.mark.parametrize(
    "name",
    [
        "qwen3-vl",
        "qwen3.5",
        "lfm2-vl",
        "minicpm-v",
        "mllama",
        "gemma4",
        pytest.param("gemma3", marks=pytest.mark.proof),
    ],
)
def test_a_chain_that_is_cut_before_the_decoder_or_where_streams_go_on(
    name: str, image: bytes, targets: Callable[[str], Bundle]
) -> None:
    """With a picture and without one, of which the first worker has nothing to run.

    Rows of pictures that stand beside the prompt go along as far as a layer takes them.
    """
    target = targets(name)
    prompts, whole = PromptBuilder.open(target), Whole(target)
    pixels = target.manifest.family.preprocess(decode_image(image))
    pictured = prompts.build([question(WORDS)], [pixels.grid]).ids
    words = Message("user", (TextPart(WORDS),))
    plain = prompts.build([words], []).ids
    expected = [whole.answer(Prompt(pictured, (pixels,)), 8), whole.answer(Prompt(plain, ()), 8)]
    asked = [
        Request.about(image, WORDS, mode=Mode.CLOUD, max_tokens=8),
        Request(messages=(words,), mode=Mode.CLOUD, max_tokens=8),
    ]
    with (
        Worker(target, layers=("decoder.2", END)) as last,
        Worker(target, layers=("decoder.0", "decoder.2"), next_worker=last.address) as middle,
        Worker(target, layers=("image", "decoder.0"), next_worker=middle.address) as first,
    ):
        for answer, right in zip(ask(target, target, first.address, *asked), expected, strict=True):
            assert [token.id for token in answer.tokens] == right[: len(answer.tokens)]
            assert len(answer.tokens) == 8 or answer.tokens[-1].id in target.manifest.stop_tokens


def test_image_tokens_that_have_places_are_all_kept(qwen: Bundle, drafter: Bundle, worker: str, image: bytes) -> None:
    fewer = Request.about(image, WORDS, mode=Mode.SPLIT, cut="decoder.0", keep_image_tokens=0.5)
    with pytest.raises(InputError, match="image tokens"):
        ask(drafter, qwen, worker, fewer)


@pytest.mark.parametrize(
    "name",
    [
        "qwen3-vl",
        "qwen3.5",
        "minicpm-v",
        pytest.param("internvl-qwen3", marks=pytest.mark.proof),
        "gemma3",
        pytest.param("gemma4", marks=pytest.mark.proof),
        "paligemma2",
        "git",
    ],
)
def test_every_family_answers_so_through_agent_and_worker(
    name: str, image: bytes, targets: Callable[[str], Bundle], tmp_path: Path
) -> None:
    """Two questions that begin alike, of which rows are only shared where they saw the same; in every mode."""
    target = targets(name)
    drafter = quantized(target, tmp_path / "drafter")
    manifest, whole, prompts = target.manifest, Whole(target), PromptBuilder.open(target)
    pixels = manifest.family.preprocess(decode_image(image))
    asked, expected = [], []
    for words in ("How many are there?", "How many are red?" if manifest.family.needs_question else ""):
        ids = prompts.build([question(words)], [pixels.grid]).ids
        right = whole.answer(Prompt(ids, (pixels,)), 10)
        stop = next((index + 1 for index, token in enumerate(right) if token in manifest.stop_tokens), 10)
        for mode, cut in (
            (Mode.CLOUD, "image"),
            (Mode.SPLIT, "vision.2"),
            (Mode.SPLIT, "decoder.0"),
            (Mode.SPLIT, "decoder.2"),
            (Mode.SPLIT, "head"),
            (Mode.DRAFT, "image"),
            (Mode.DRAFT, "decoder.1"),
        ):
            if cut not in manifest.line.cuts:
                continue
            effort = float(mode is not Mode.DRAFT)
            asked.append(Request.about(image, words, mode=mode, cut=cut, max_tokens=10, effort=effort))
            expected.append(right[:stop])
    with Worker(target) as here:
        answers = ask(drafter, target, here.address, *asked)
    for one, answer, right in zip(asked, answers, expected, strict=True):
        assert [token.id for token in answer.tokens] == right, (one.mode, one.cut)
        assert answer.exact


@pytest.mark.proof
def test_a_smaller_model_of_the_family_drafts_for_a_larger_one(image: bytes, tmp_path: Path) -> None:
    """As Qwen3-VL 2B for 8B: another tower, other layers and widths, and a vocabulary that is padded further."""
    vision = {"depth": 4, "hidden_size": 64, "num_heads": 2, "out_hidden_size": 64, "deepstack_visual_indexes": [0, 2]}
    text = {"hidden_size": 64, "num_hidden_layers": 3, "head_dim": 32}
    rope = {"mrope_section": [6, 5, 5], "mrope_interleaved": True}
    small = SMALL["qwen3-vl"].smaller(vision_config=vision, text_config=text, rope=rope, more_words=30)
    small.write(tmp_path / "small")
    SMALL["qwen3-vl"].write(tmp_path / "large")
    target = export_bundle(
        tmp_path / "large", tmp_path / "t", role="target", precision="fp32", name="t", progress=lambda _: None
    )
    drafter = export_bundle(
        tmp_path / "small",
        tmp_path / "d",
        role="drafter",
        precision="int8",
        name="d",
        target=target,
        progress=lambda _: None,
    )
    assert drafter.manifest.decoder.vocabulary == target.manifest.decoder.vocabulary
    pixels = target.manifest.family.preprocess(decode_image(image))
    ids = PromptBuilder.open(target).build([question(WORDS)], [pixels.grid]).ids
    right = Whole(target).answer(Prompt(ids, (pixels,)), 10)
    asked = [Request.about(image, WORDS, mode=mode, max_tokens=10) for mode in (Mode.CLOUD, Mode.DRAFT)]
    with Worker(target) as here:
        for answer in ask(drafter, target, here.address, *asked):
            assert [token.id for token in answer.tokens] == right
