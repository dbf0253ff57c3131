"""Cuts before the decoder: the span here, the rest on a worker, against transformers' unsplit model."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch

from cutline.cloud.server import serve
from cutline.cloud.target import load_model
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.reference import Reference
from cutline.demo.requests import requests
from cutline.edge.agent import Agent
from cutline.edge.answer import Answer, Mode, Question
from cutline.edge.vision import VisionSpan
from cutline.errors import CutlineError, InputError, ModelMismatch
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image, preprocess
from cutline.models.wire import Wire, bytes_per_row

BUNDLE = Bundle.open(TARGET)
CUTS = BUNDLE.manifest.line.image_cuts[1:]
ASKED = list(requests(Split.EVALUATION, 2, seed=11))[::3]


def ask(questions: list[Question], *, target: Bundle | None = BUNDLE) -> list[Answer]:
    """The answers of an agent with a worker of the demo's target."""

    async def run() -> list[Answer]:
        async with (
            serve(BUNDLE, listen="127.0.0.1:0", slots=2, context=256, device="cpu") as address,
            Agent(Bundle.open(DRAFTER), worker=address, threads=1, target=target) as agent,
        ):
            return [await agent.answer(question) for question in questions]

    return asyncio.run(run())


@pytest.mark.parametrize("cut", CUTS)
def test_a_boundary_is_what_transformers_has_there(cut: str) -> None:
    tiles = np.concatenate([preprocess(decode_image(one.image), BUNDLE.manifest.image).tiles for one in ASKED[:3]])
    model = load_model(BUNDLE).model
    with torch.inference_mode():
        layers = model.vision_model(pixel_values=torch.from_numpy(tiles), output_hidden_states=True).hidden_states
        last = torch.cat(model.get_image_features(torch.from_numpy(tiles)[:, None]).pooler_output)
    expected = last if cut == "decoder.0" else layers[CUTS.index(cut)].flatten(0, 1)
    boundary = VisionSpan.open(BUNDLE, cut, threads=1)(tiles)
    assert boundary.shape == expected.shape
    assert np.abs(boundary - expected.numpy()).max() <= 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("cut", CUTS)
def test_a_cut_changes_nothing(cut: str) -> None:
    reference = Reference(BUNDLE)
    truths = [reference.answer(one.image, one.question.text) for one in ASKED]
    for mode in (Mode.CLOUD, Mode.DRAFT):
        answers = ask([Question(image=one.image, text=one.question.text, mode=mode, cut=cut) for one in ASKED])
        assert [tuple(token.id for token in answer.tokens) for answer in answers] == truths
        assert all(answer.exact and answer.cut == cut for answer in answers)


@pytest.mark.parametrize("wire", list(Wire))
def test_bytes_are_those_of_the_format_and_narrow_ones_are_not_called_exact(wire: Wire) -> None:
    one = ASKED[0]
    (answer,) = ask([Question(image=one.image, text=one.question.text, mode=Mode.CLOUD, cut="vision.2", wire=wire)])
    rows = 64 * bytes_per_row(wire, 128)
    assert rows < answer.bytes_up < rows + 500
    assert answer.exact == (wire is Wire.FLOAT32)
    assert answer.complete


def test_a_kept_answer_cuts_nothing() -> None:
    one = next(one for one in ASKED if one.question.kind in ("read", "colour"))
    answers = ask([Question(image=one.image, text="How many digits are there?", mode=Mode.AUTO, cut="decoder.0")])
    assert [answer.cut for answer in answers if answer.worker is None] in ([None], [])


@pytest.mark.parametrize(
    ("cut", "target", "error", "words"),
    [
        ("vision.9", BUNDLE, InputError, "cuts: vision.0"),
        ("decoder.2", BUNDLE, InputError, "cannot be cut at 'decoder.2'"),
        ("vision.1", None, InputError, "--target"),
        ("image", Bundle.open(DRAFTER), ModelMismatch, "another target"),
    ],
)
def test_what_cannot_be_cut_is_refused(cut: str, target: Bundle | None, error: type[CutlineError], words: str) -> None:
    question = Question(image=ASKED[0].image, text="Read the digits.", mode=Mode.CLOUD, cut=cut)
    with pytest.raises(error, match=words):
        ask([question], target=target)
