"""Questions about videos, by families with a mode for them: in every mode what transformers' `generate` answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from cutline.cloud.worker import Worker
from cutline.core.conversation import ImagePart, Message, TextPart, VideoPart
from cutline.core.request import Mode, Request
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.edge.agent import Agent
from cutline.edge.generation.preprocess import Preparer
from cutline.edge.generation.result import Answer
from cutline.edge.video.views import VideoShown
from cutline.errors import InputError
from cutline.models.bundle import Bundle
from cutline.models.families.qwen.qwenvl import END, START
from cutline.models.families.smolvlm import SmolSampling
from cutline.models.images import Pixels, decode_image
from cutline.models.prompt import PromptBuilder
from cutline.models.video import strip
from cutline.protos.codec import agent_from_wire, agent_to_wire
from cutline.protos.messages import Open
from cutline.testing.models.comparison import Prompt, Whole, quantized

LENGTH = 10
TIMES = (0.0, 0.5, 1.0, 1.5, 2.0)
WORDS = TextPart("What happens?")
WAYS = [
    (Mode.CLOUD, "image"),
    (Mode.SPLIT, "vision.2"),
    (Mode.SPLIT, "decoder.0"),
    (Mode.SPLIT, "decoder.2"),
    (Mode.DRAFT, "image"),
    (Mode.DRAFT, "decoder.1"),
]


def frame(seed: int, size: tuple[int, int] = (100, 60)) -> bytes:
    out = BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


FRAMES = tuple(map(frame, range(len(TIMES))))
FILM = Message("user", (VideoPart(TIMES, 3.0, 90), WORDS))


def ask(drafter: Bundle, target: Bundle, worker: str, *asked: Request) -> list[Answer]:
    async def answers() -> list[Answer]:
        async with Agent(drafter, worker=worker, threads=1, target=target) as agent:
            return [await agent.answer(one) for one in asked]

    return asyncio.run(answers())


@torch.inference_mode()
def of_transformers(bundle: Bundle, pieces: Sequence[Pixels], ids: tuple[int, ...], *after: Pixels) -> list[int]:
    """What it answers to a video as such, with pictures `after` it: video tokens, pixels and a grid in time."""
    model: Any = AutoModelForImageTextToText.from_pretrained(bundle.path.parent / "hf").eval()
    family, tokens = bundle.manifest.family, torch.tensor([ids])
    shown = tokens == bundle.manifest.image_token
    filmed = shown & (shown.cumsum(1) <= sum(family.tokens(piece.grid) for piece in pieces))
    tokens[filmed] = model.config.video_token_id
    given: dict[str, Any] = {}
    if "qwen2_5" in model.config.model_type:
        given["second_per_grid_ts"] = torch.tensor([2 / (len(TIMES) / 3.0)])
    made = model.generate(
        input_ids=tokens,
        pixel_values_videos=torch.from_numpy(np.concatenate([piece.values for piece in pieces])),
        video_grid_thw=torch.tensor([[len(pieces), *pieces[0].grid]]),
        mm_token_type_ids=shown.int() + filmed.int(),
        **{name: torch.from_numpy(array) for name, array in family.as_given(after).items()},
        **given,
        do_sample=False,
        max_new_tokens=LENGTH,
    )
    return list(made[0, len(ids) :].tolist())


@pytest.mark.parametrize("kind", ["qwen2-vl", "qwen2.5-vl", "qwen3-vl"])
def test_qwen_answers_about_a_video_as_transformers_does(
    targets: Callable[[str], Bundle], tmp_path: Path, kind: str
) -> None:
    """In every mode, in a second question with a picture beside it, and where the worker has its pieces already."""
    target = targets(kind)
    family, prompts = target.manifest.family, PromptBuilder.open(target)
    mode = family.video
    assert mode is not None
    fitted = [mode.fit(decode_image(file), len(FRAMES)) for file in FRAMES]
    pieces = [family.piece_pixels(strip(pair)) for pair in (fitted[:2], fitted[2:4], [fitted[4]] * 2)]
    grids = [piece.grid for piece in pieces]
    if kind == "qwen3-vl":
        times = [TextPart(f"<{at} seconds>") for at in ("0.2", "1.2", "2.0")]
        parts = tuple(part for at in times for part in (at, ImagePart()))
    else:  # between the marks of one
        parts = (ImagePart(), ImagePart(joined=True), ImagePart(joined=True))
    ids = prompts.build([Message("user", (*parts, WORDS))], grids).ids
    marks = [prompts.vocabulary.added[mark] for mark in (START, END)]
    assert [ids.count(mark) for mark in marks] == [3, 3] if kind == "qwen3-vl" else [1, 1]
    expected = of_transformers(target, pieces, ids)
    more = (
        FILM,
        Message("assistant", (TextPart("Nothing."),)),
        Message("user", (ImagePart(), TextPart("And here?"))),
    )
    picture = family.preprocess(decode_image(FRAMES[0]))
    both = prompts.build([Message("user", (*parts, WORDS)), *more[1:]], [*grids, picture.grid]).ids
    second = of_transformers(target, pieces, both, picture)
    how: dict[str, Any] = {"mode": Mode.CLOUD, "max_tokens": LENGTH}
    asked = []
    for way, cut in WAYS:
        here_is = {"mode": way, "cut": cut, "effort": float(way is not Mode.DRAFT)}
        asked.append(Request(messages=(FILM,), images=FRAMES, **how | here_is))
    asked.append(Request(messages=more, images=(*FRAMES, FRAMES[0]), **how))
    asked.append(Request(messages=more, images=(*FRAMES, FRAMES[0]), **how | {"mode": Mode.SPLIT, "cut": "decoder.2"}))
    asked.append(Request(messages=(FILM,), images=FRAMES, **how))
    with Worker(target) as here:
        *answers, followed, cut_again, again = ask(
            quantized(target, tmp_path / "drafter"), target, here.address, *asked
        )
    for answer in (*answers, again):
        assert [token.id for token in answer.tokens] == expected[: len(answer.tokens)], (answer.mode, answer.cut)
        assert len(answer.tokens) == LENGTH or answer.tokens[-1].id in target.manifest.stop_tokens
        assert answer.exact
        assert answer.video == VideoShown(mode="video", videos=1, frames=5, total=90, seconds=3.0)
        assert answer.prompt_tokens == len(ids)
    for answer in (followed, cut_again):
        assert [token.id for token in answer.tokens] == second[: len(answer.tokens)], answer.cut
    assert (followed.reused_images, again.reused_images) == (3, 3)


def test_a_drafter_answers_about_a_video_alone_and_before_a_worker(
    targets: Callable[[str], Bundle], tmp_path: Path
) -> None:
    """Alone as transformers answers with its weights; `auto` asks the worker, as no gate was calibrated for videos."""
    target = targets("qwen2.5-vl")
    drafter = quantized(target, tmp_path / "drafter", precision="fp32")
    family, mode = target.manifest.family, target.manifest.family.video
    assert mode is not None
    fitted = [mode.fit(decode_image(file), len(FRAMES)) for file in FRAMES]
    pieces = [family.piece_pixels(strip(pair)) for pair in (fitted[:2], fitted[2:4], [fitted[4]] * 2)]
    parts = (ImagePart(), ImagePart(joined=True), ImagePart(joined=True))
    ids = PromptBuilder.open(target).build([Message("user", (*parts, WORDS))], [one.grid for one in pieces]).ids
    expected = of_transformers(target, pieces, ids)
    asked = [
        Request(messages=(FILM,), images=FRAMES, max_tokens=LENGTH, mode=mode, effort=0.0)
        for mode in (Mode.EDGE, Mode.DRAFT, Mode.AUTO)
    ]
    with Worker(target) as here:
        alone, drafted, auto = ask(drafter, target, here.address, *asked)
    for answer in (alone, drafted, auto):
        assert [token.id for token in answer.tokens] == expected[: len(answer.tokens)], answer.mode
        assert len(answer.tokens) == LENGTH or answer.tokens[-1].id in target.manifest.stop_tokens
    assert {token.source for token in alone.tokens} == {"edge"}
    assert (alone.worker, alone.exact) == (None, False)
    assert drafted.accepted > LENGTH / 2, "drafter and worker look at the same"
    assert (auto.worker, auto.exact) == (here.address, True)


def test_smolvlm2_answers_about_a_video_as_about_its_tiles(tmp_path: Path) -> None:
    """A bundle of the demo's shape with the sampling of SmolVLM2; the worker's own says nothing of videos."""
    drafter, target = Bundle.open(DRAFTER), Bundle.open(TARGET)
    family = msgspec.structs.replace(drafter.manifest.family, sampling=SmolSampling(1.0, 8, 100))
    drafter.manifest = msgspec.structs.replace(drafter.manifest, family=family)
    film = Message("user", (VideoPart((0.0, 61.0), 62.5), TextPart("Read the digits.")))
    frames = (frame(1, (90, 64)), frame(2, (64, 64)))
    assert family.video is not None
    alike = (frame(1, (90, 64)), frame(2, (90, 64)))
    pixels = [family.piece_pixels(family.video.fit(decode_image(file), 2)) for file in alike]
    text = "You are provided the following series of two frames from a 0:01:02 [H:MM:SS] video.\n\nFrame from 00:00:"
    parts = (TextPart(text), ImagePart(), TextPart("\nFrame from 01:01:"), ImagePart(), TextPart("\n\n"))
    ids = PromptBuilder.open(target).build([Message("user", (*parts, TextPart("Read the digits.")))], [(0, 0)] * 2).ids
    expected = Whole(target).answer(Prompt(ids, tuple(pixels)), LENGTH)
    asked = [
        Request(messages=(film,), images=alike, mode=mode, cut=cut, max_tokens=LENGTH)
        for mode, cut in ((Mode.CLOUD, "image"), (Mode.DRAFT, "image"), (Mode.SPLIT, "decoder.0"))
    ]
    with Worker(target) as here:
        *answers, other = ask(
            drafter,
            target,
            here.address,
            *asked,
            Request(messages=(film,), images=frames, mode=Mode.CLOUD, max_tokens=2),
        )
    for answer in answers:
        assert [token.id for token in answer.tokens] == expected[: len(answer.tokens)]
        assert answer.video is not None
        assert (answer.video.mode, answer.exact) == ("video", True)
    assert other.video is not None
    assert (other.video.mode, other.video.why) == ("images", "its frames are of several sizes")


def test_internvl_answers_about_a_video_as_about_numbered_tiles(
    targets: Callable[[str], Bundle], tmp_path: Path
) -> None:
    """transformers has its frames as pictures of one tile, in words that its processor puts between them."""
    target = targets("internvl-qwen2")
    family = target.manifest.family
    assert family.video is not None
    pixels = tuple(family.piece_pixels(family.video.fit(decode_image(file), 5)) for file in FRAMES)
    parts = tuple(part for index in range(1, 6) for part in (TextPart(f"Frame{index}: "), ImagePart()))
    ids = PromptBuilder.open(target).build([Message("user", (*parts, WORDS))], [(0, 0)] * 5).ids
    expected = Whole(target).answer(Prompt(ids, pixels), LENGTH)
    asked = [
        Request(messages=(FILM,), images=FRAMES, mode=mode, cut=cut, max_tokens=LENGTH, effort=1.0)
        for mode, cut in ((Mode.CLOUD, "image"), (Mode.DRAFT, "image"), (Mode.SPLIT, "decoder.1"))
    ]
    with Worker(target) as here:
        answers = ask(quantized(target, tmp_path / "drafter"), target, here.address, *asked)
    for answer in answers:
        assert [token.id for token in answer.tokens] == expected[: len(answer.tokens)]
        assert answer.video is not None
        assert (answer.video.mode, answer.video.frames, answer.exact) == ("video", 5, True)


def test_pieces_are_a_feature_that_older_workers_lack_and_are_checked(targets: Callable[[str], Bundle]) -> None:
    target = targets("qwen3-vl")
    prepared = Preparer(target.manifest, PromptBuilder.open(target), target, planned=False).prepare(
        Request(messages=(FILM,), images=FRAMES)
    )
    assert prepared.pieces == (0, 1, 2)
    opening = Open(model="m", tokens=(1,), prompt_length=1, max_tokens=2, pieces=(0, 2))
    wire = agent_to_wire(opening)
    assert list(wire.open.requires) == ["video.pieces"] or "video.pieces" in wire.open.requires
    assert agent_from_wire(wire) == opening
    timed = Open(model="m", tokens=(1,), prompt_length=1, max_tokens=2, pieces=(0, 1), times=(0, 4))
    wire = agent_to_wire(timed)
    assert "video.times" in wire.open.requires
    assert agent_from_wire(wire) == timed
    from cutline.cloud.serving.admission import Reception, ServedSpan

    reception = Reception(target.manifest, ServedSpan(context=1000))
    token = target.manifest.image_token
    given = {"model": target.manifest.identity, "tokens": (token,) * 8, "prompt_length": 8, "max_tokens": 9}
    for more in ({"pieces": (1,), "images": 1}, {"pieces": (0,), "cut": "vision.0", "grids": ((4, 4),)}):
        with pytest.raises(InputError, match="pieces of videos are among"):
            reception.check(Open(**given | more))  # type: ignore[arg-type]
    for times in ((0,), (0, 1_000_001)):
        with pytest.raises(InputError, match="one time of 1000000 at most"):
            reception.check(Open(**given, times=times, images=2))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no piece of a video of this model"):
        reception._pixels(frame(1), piece=True)
