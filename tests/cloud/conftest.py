from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForImageTextToText

from cutline.core.conversation import question
from cutline.core.wire import Wire
from cutline.demo.bundles import TARGET
from cutline.demo.cards import Split
from cutline.demo.reference import Reference
from cutline.demo.requests import requests
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image
from cutline.models.prompt import PromptBuilder
from cutline.protos.client import WorkerClient, WorkerSession
from cutline.protos.messages import Confirmed, Draft, Finished, Open, boundary_chunks, draft_chunks, image_chunks

MAX_TOKENS = 40
SECONDS = 120  # that any one exchange may take: a guard against a hang, with both cores busy ten times over

Case = tuple[Open, bytes, tuple[int, ...]]
Floats = NDArray[np.float32]


class Unsplit:
    """The target in transformers, in one piece, and by hooks what crosses each of its cuts."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.model: Any = AutoModelForImageTextToText.from_pretrained(
            bundle.path, local_files_only=True, dtype=torch.float32
        ).eval()

    def pixels(self, image: bytes) -> Floats:
        return self.bundle.manifest.family.preprocess(decode_image(image)).values

    def grid(self, image: bytes) -> tuple[int, int]:
        return self.bundle.manifest.family.preprocess(decode_image(image)).grid

    def logits(self, tokens: Sequence[int], pixels: Floats | None) -> torch.Tensor:
        """(n, vocabulary), from a pass of all `tokens`."""
        values = None if pixels is None else torch.from_numpy(pixels)[None]
        with torch.inference_mode():
            logits: torch.Tensor = self.model(input_ids=torch.tensor([list(tokens)]), pixel_values=values).logits[0]
        return logits

    def boundary(self, pixels: Floats, cut: str) -> Floats:
        """What crosses a cut up to the decoder: given to the module after it, or by the connector."""
        tower = self.model.model.vision_model
        room, _, index = cut.partition(".")
        seen: list[torch.Tensor] = []
        if cut == "decoder.0":
            hook = self.model.model.connector.register_forward_hook(lambda module, given, made: seen.append(made))
        else:
            module = tower.post_layernorm if room == "connector" else tower.encoder.layers[int(index)]
            hook = module.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
        with torch.inference_mode():
            self.model.model.get_image_features(torch.from_numpy(pixels)[:, None])
        hook.remove()
        return seen[0].flatten(0, 1).numpy()

    def rows(self, tokens: Sequence[int], pixels: Floats | None, cut: str) -> Floats:
        """What crosses a cut inside the decoder (n, width): given to the layer after it, or to the last norm."""
        decoder = self.model.model.text_model
        module = decoder.norm if cut == "head" else decoder.layers[int(cut.partition(".")[2])]
        seen: list[torch.Tensor] = []
        hook = module.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
        self.logits(tokens, pixels)
        hook.remove()
        return seen[0][0].numpy()


class Asking:
    """A question as an agent asks it at `cut`, which believes `believed` to be the answer and drafts `ahead` of it."""

    def __init__(
        self, unsplit: Unsplit, case: Case, cut: str, *, believed: Sequence[int] = (), ahead: int = 0, **changes: Any
    ) -> None:
        self.unsplit = unsplit
        self.cut = cut
        self.deep = cut in unsplit.bundle.manifest.line.deep_cuts
        self.pixels = unsplit.pixels(case[1])
        self.image = case[1]
        self.believed, self.ahead = tuple(believed), ahead
        self.tokens: list[int] = []
        self.events: list[Any] = []
        grids = (unsplit.grid(case[1]),)
        self.opening = replace(case[0], cut=cut, images=int(cut == "image"), grids=grids, **changes)

    def upload(self) -> list[Any]:
        if self.cut == "image":
            return list(image_chunks(self.image))
        opening = self.opening
        rows = (
            self.unsplit.rows((*opening.tokens, *opening.draft), self.pixels, self.cut)
            if self.deep
            else self.unsplit.boundary(self.pixels, self.cut)
        )
        return list(boundary_chunks(rows, Wire.FLOAT32))

    def drafts(self) -> list[Draft]:
        """What to send now: from the last token on, with its row where the cut wants one."""
        known = (*self.opening.tokens, *self.tokens)
        guessed = self.believed[len(self.tokens) : len(self.tokens) + self.ahead]
        tokens = (*known[-1:], *guessed)
        if not self.deep:
            return [Draft(len(known) - 1, tokens)] if guessed else []
        rows = self.unsplit.rows((*known, *guessed), self.pixels, self.cut)[len(known) - 1 :]
        return list(draft_chunks(len(known) - 1, tokens, rows, Wire.FLOAT32))

    async def ask(self, client: WorkerClient, stop: int | None = None) -> Finished | None:
        """To the end, or until so many tokens are confirmed."""
        async with client.session(self.opening, self.upload(), timeout=SECONDS) as session:
            return await self.follow(session, stop)

    async def follow(self, session: WorkerSession, stop: int | None = None) -> Finished | None:
        async for event in session.events():
            self.events.append(event)
            if isinstance(event, Confirmed):
                assert event.position == len(self.opening.tokens) + len(self.tokens)
                self.tokens += event.tokens
                if stop is not None and len(self.tokens) >= stop:
                    return None
                for draft in self.drafts():
                    await session.offer(draft)
        return session.finished


@pytest.fixture(scope="session")
def unsplit(bundle: Bundle) -> Unsplit:
    return Unsplit(bundle)


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """The demo's target."""
    return Bundle.open(TARGET)


@pytest.fixture(scope="session")
def cases(bundle: Bundle, shared: Callable[[str, Callable[[Path], object]], Path]) -> list[Case]:
    """Questions of every kind about two cards: the opening, the image, and the answer of transformers' `generate`."""
    asked = list(itertools.islice(requests(Split.CALIBRATION, 2, seed=4), 12))

    def answer(folder: Path) -> None:
        reference = Reference(bundle)
        answers = [reference.answer(one.image, one.question.text, max_tokens=MAX_TOKENS) for one in asked]
        (folder / "answers.json").write_bytes(msgspec.json.encode(answers))

    answers = msgspec.json.decode((shared("cases", answer) / "answers.json").read_bytes(), type=list[tuple[int, ...]])
    prompts, found = PromptBuilder.open(bundle), []
    for one, right in zip(asked, answers, strict=True):
        pixels = bundle.manifest.family.preprocess(decode_image(one.image))
        prompt = prompts.build([question(one.question.text)], [pixels.grid]).ids
        opening = Open(
            model=bundle.manifest.identity,
            tokens=prompt,
            prompt_length=len(prompt),
            max_tokens=MAX_TOKENS,
            images=1,
        )
        found.append((opening, one.image, right))
    return found


@pytest.fixture(scope="session")
def case(cases: list[Case]) -> Case:
    """The one with the longest answer."""
    return max(cases, key=lambda case: len(case[2]))


@pytest.fixture(scope="session")
def asking(unsplit: Unsplit) -> Any:
    """`Asking`, of the target."""
    return functools.partial(Asking, unsplit)
