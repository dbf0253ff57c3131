"""What a worker remembers changes nothing but its work: conversations held against transformers, which forgets all."""

from __future__ import annotations

import asyncio
import functools
import io
import queue
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from cutline.cloud.engine.engine import Engine
from cutline.cloud.engine.image_cache import ImageCache
from cutline.cloud.engine.sessions.session import Event
from cutline.cloud.model.model_runner import Capacity, Target
from cutline.cloud.serving.admission import Reception, ServedSpan
from cutline.cloud.serving.inbox import Inbox
from cutline.core.wire import Wire
from cutline.demo.bundles import TARGET
from cutline.errors import CutlineError, InputError, WorkerForgot
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image
from cutline.protos.digests import as_received, image_digest, rows_digest
from cutline.protos.messages import Boundary, Confirmed, Finished, ImageChunk, Open, Opened
from cutline.testing.models.comparison import Prompt, Whole

STEPS = 6
CONTEXT = 200


class Messages:
    """An inbox that holds what an agent sent."""

    def __init__(self, messages: Sequence[Any]) -> None:
        self._messages = list(messages)

    async def next(self) -> Any:
        return self._messages.pop(0) if self._messages else None


@dataclass
class Told:
    """What became of a session."""

    opened: Opened
    tokens: list[int]
    finished: Finished


@functools.cache
def whole(path: Path) -> Whole:
    """transformers' model of the bundle there, which nothing changes."""
    return Whole(Bundle.open(path))


class Worker:
    """A worker without its wire, and transformers' answers to the same questions."""

    def __init__(self, bundle: Bundle, *, slots: int = 3, room: int = 1 << 20) -> None:
        self.bundle = bundle
        self.target = Target(bundle, Capacity(slots=slots, context=CONTEXT), dtype=torch.float32)
        self.encoded: list[int] = []  # images, each time the tower ran
        steps = self.target.steps

        def counted(boundary: Any, cut: str, grids: Any, **how: Any) -> Any:
            self.encoded.append(len(grids))
            return steps(boundary, cut, grids, **how)

        self.target.steps = counted  # type: ignore[method-assign]
        self.image_cache = ImageCache(room)
        self.engine = Engine(self.target, (), image_cache=self.image_cache)
        self.reception = Reception(bundle.manifest, ServedSpan(context=CONTEXT), image_cache=self.image_cache)
        self.whole = whole(bundle.path)
        self.pictures = [noise(seed, bundle) for seed in range(3)]

    def image_tokens(self, index: int) -> list[int]:
        family = self.bundle.manifest.family
        return [self.bundle.manifest.image_token] * family.tokens(self.grid(index))

    def grid(self, index: int) -> tuple[int, int]:
        return self.bundle.manifest.family.grid(decode_image(self.pictures[index]).size)

    def expected(self, tokens: Sequence[int], images: Sequence[int], steps: int = STEPS) -> list[int]:
        pixels = [self.bundle.manifest.family.preprocess(decode_image(self.pictures[one])) for one in images]
        return self.whole.answer(Prompt(tuple(tokens), tuple(pixels)), steps)

    def opening(self, tokens: Sequence[int], images: Sequence[int], *, known: int = 0, **changes: Any) -> Open:
        opening = Open(
            model=self.bundle.manifest.identity,
            tokens=tuple(tokens),
            prompt_length=len(tokens),
            max_tokens=STEPS,
            images=len(images) - known,
            digests=tuple(image_digest(self.pictures[one]) for one in images),
            known=known,
        )
        return replace(opening, **changes)

    def begin(self, opening: Open, messages: Sequence[Any], tenant: str = "") -> queue.SimpleQueue[Event]:
        """Open a session. Raises what the reception does."""
        self.reception.check(opening)
        upload = asyncio.run(self.reception.upload(opening, cast(Inbox, Messages(messages)), tenant))
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.engine.open(self.reception.request(opening, upload), (), events.put)
        return events

    def ask(
        self, tokens: Sequence[int], images: Sequence[int], *, known: int = 0, tenant: str = "", **changes: Any
    ) -> Told:
        files = [ImageChunk(self.pictures[one], last=True) for one in images[known:]]
        return ended(self.begin(self.opening(tokens, images, known=known, **changes), files, tenant))


def ended(events: queue.SimpleQueue[Event]) -> Told:
    opened, tokens = events.get(timeout=60), list[int]()
    if isinstance(opened, CutlineError):
        raise opened
    assert isinstance(opened, Opened)
    while isinstance(event := events.get(timeout=60), Confirmed):
        tokens += event.tokens
    assert isinstance(event, Finished), event
    return Told(opened, tokens, event)


def noise(seed: int, bundle: Bundle) -> bytes:
    dice = np.random.default_rng(seed)
    size = (64, 64) if bundle.manifest.family.axes == 1 else ((56, 84), (84, 56), (56, 56))[seed]
    file = io.BytesIO()
    Image.fromarray(dice.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(params=["demo", "qwen"])
def worker(request: pytest.FixtureRequest) -> Iterator[Worker]:
    bundle = Bundle.open(TARGET) if request.param == "demo" else request.getfixturevalue("qwen")
    worker = Worker(bundle)
    worker.engine.start()
    yield worker
    worker.engine.stop()


def text(worker: Worker, dice: random.Random, length: int) -> list[int]:
    spec = worker.bundle.manifest
    words = [token for token in range(3, 40) if token != spec.image_token and token not in spec.stop_tokens]
    return dice.choices(words, k=length)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.proof) for seed in range(2, 8))])
def test_conversations_that_share_everything_answer_as_if_they_shared_nothing(worker: Worker, seed: int) -> None:
    """Turns, branches and other people's questions, about the same images and others, in more slots than there are."""
    dice = random.Random(seed)  # noqa: S311
    system = text(worker, dice, 20)
    talks: list[tuple[list[int], list[int], str]] = []
    reused = again = 0
    for _ in range(14):
        if talks and dice.random() < 0.6:
            tokens, images, tenant = dice.choice(talks)
            if dice.random() < 0.3:  # asked anew, in other words
                tokens = tokens[: len(tokens) - 3 - STEPS]
        else:
            tokens, images, tenant = [*system], [], dice.choice(["", "", "somebody"])
        if not images or (dice.random() < 0.6 and len(images) < 3):
            images = [*images, dice.randrange(3)]
            tokens = [*tokens, 6, *worker.image_tokens(images[-1])]
        tokens = [*tokens, *text(worker, dice, dice.randrange(2, 6))]
        if tokens.count(worker.bundle.manifest.image_token) != sum(len(worker.image_tokens(one)) for one in images):
            continue  # an answer, or a branch, took part of an image
        if len(tokens) + STEPS >= CONTEXT:
            continue
        known = dice.randrange(len(images) + 1)
        try:
            told = worker.ask(tokens, images, known=known, tenant=tenant)
        except WorkerForgot:
            told = worker.ask(tokens, images, tenant=tenant)
        assert told.tokens == worker.expected(tokens, images), (seed, tokens, images)
        assert told.opened.kept or told.opened.reused
        reused += told.opened.reused
        again += told.opened.reused > 0
        talks.append(([*tokens, *told.tokens], images, tenant))
    assert again >= 3
    assert reused > 60


def test_the_next_turn_runs_only_what_is_new_and_no_image_again(worker: Worker) -> None:
    dice = random.Random(7)  # noqa: S311
    tokens = [*text(worker, dice, 5), *worker.image_tokens(0), *text(worker, dice, 4)]
    first = worker.ask(tokens, [0])
    assert (first.opened.kept, first.opened.reused, worker.encoded) == (True, 0, [1])
    tokens = [*tokens, *first.tokens, *text(worker, dice, 3)]
    second = worker.ask(tokens, [0], known=1)
    # All but the last token of the answer, which was never given to the model.
    assert (second.opened.kept, second.opened.reused, worker.encoded) == (True, len(tokens) - 4, [1])
    assert second.tokens == worker.expected(tokens, [0])
    # Another question about the image, by its digest and by its bytes; then beside another image.
    other = [*text(worker, dice, 9), *worker.image_tokens(0), *text(worker, dice, 2)]
    for known in (1, 0):
        assert worker.ask(other, [0], known=known).tokens == worker.expected(other, [0])
    assert worker.encoded == [1]
    both = [*other, *worker.image_tokens(1), 7]
    third = worker.ask(both, [0, 1], known=1)
    assert third.tokens == worker.expected(both, [0, 1])
    assert worker.encoded == [1, 1]


@pytest.mark.threat("caches")
def test_an_image_that_only_looks_the_same_to_the_prompt_shares_nothing_from_there_on(worker: Worker) -> None:
    dice = random.Random(3)  # noqa: S311
    before, after = text(worker, dice, 20), text(worker, dice, 20)
    worker.pictures[1] = noise(5 if worker.bundle.manifest.family.axes == 1 else 0, worker.bundle)
    file = io.BytesIO()
    flipped = decode_image(worker.pictures[1]).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    flipped.save(file, "PNG")
    worker.pictures[1] = file.getvalue()
    tokens = [*before, *worker.image_tokens(0), *after]
    assert worker.ask(tokens, [0]).tokens == worker.expected(tokens, [0])
    other = worker.ask(tokens, [1])
    assert other.opened.reused == len(before)
    assert other.tokens == worker.expected(tokens, [1])
    # Without a digest it is not known which image it is.
    nameless = worker.ask(tokens, [1], digests=())
    assert (nameless.opened.reused, nameless.opened.kept) == (len(before), False)
    assert nameless.tokens == worker.expected(tokens, [1])


@pytest.mark.threat("caches")
def test_nothing_of_one_tenants_is_there_for_another(worker: Worker) -> None:
    tokens = [*range(5, 25), *worker.image_tokens(0), *range(5, 15)]
    assert worker.ask(tokens, [0], tenant="a").opened.reused == 0
    with pytest.raises(WorkerForgot, match="send them all"):
        worker.ask(tokens, [0], known=1, tenant="b")
    other = worker.ask(tokens, [0], tenant="b")
    assert (other.opened.reused, other.tokens) == (0, worker.expected(tokens, [0]))
    assert worker.encoded == [1, 1]
    assert worker.ask(tokens, [0], known=1, tenant="a").opened.reused == len(tokens) - 1


@pytest.mark.threat("caches")
def test_wrong_digests_and_counts_are_refused(worker: Worker) -> None:
    tokens = [*range(5, 9), *worker.image_tokens(0), 5]
    worker.ask(tokens, [0])
    opening = worker.opening(tokens, [0])
    file = ImageChunk(worker.pictures[0], last=True)
    for changes, words in (
        ({"digests": (b"\0" * 32,)}, "not the one that its digest says"),
        ({"digests": (*opening.digests, b"\0" * 32)}, "2 digests"),
        ({"digests": opening.digests * 33}, "33 images are too many"),
        (
            {"grids": ((0, 0), (0, 0))} if worker.bundle.manifest.family.axes == 1 else {"grids": ((2, 2), (2, 2))},
            "2 gri",
        ),
        ({"known": 1}, "1 known images and 1 to come"),
        ({"known": 1, "images": 0, "tokens": (5, 6, 7), "prompt_length": 3}, "more image tokens"),
        (
            {"known": 1, "images": 0, "tokens": opening.tokens[:-2], "prompt_length": len(tokens) - 2},
            "image tokens, but the images sent give",
        ),
        ({"known": 1, "images": 0, "grids": ((1, 1) if worker.bundle.manifest.family.axes == 1 else (8, 2),)}, "grid"),
        ({"cut": "decoder.1", "images": 0, "grids": ((worker.grid(0)),)}, "no digests at decoder.1"),
    ):
        with pytest.raises(InputError, match=words):
            worker.begin(replace(opening, **cast(Any, changes)), [file])


@pytest.mark.parametrize("cut", ["vision.1", "connector", "decoder.0"])
@pytest.mark.parametrize("wire", [Wire.FLOAT32, Wire.BFLOAT16])
def test_boundaries_are_kept_and_known_like_images(worker: Worker, cut: str, wire: Wire) -> None:
    family, images = worker.bundle.manifest.family, [0, 1]
    tokens = [*range(5, 9), *worker.image_tokens(0), 6, *worker.image_tokens(1), 5]
    pixels = tuple(family.preprocess(decode_image(worker.pictures[one])) for one in images)
    states, _ = worker.whole.run(Prompt(tuple(tokens), pixels))
    states[cut] = as_received(states[cut], wire)
    if worker.bundle.manifest.family.axes == 3 and cut != "decoder.0":
        pytest.skip("transformers' own rows stand otherwise in the tower")
    count = family.tokens if cut == "decoder.0" else family.patches
    grids = tuple(one.grid for one in pixels)
    rows = np.split(states[cut], [count(grids[0])])
    digests = tuple(rows_digest(cut, wire, grid, one) for grid, one in zip(grids, rows, strict=True))
    opening = worker.opening(tokens, images, cut=cut, digests=digests, grids=grids)
    opening = replace(opening, images=0)
    told = ended(worker.begin(opening, [Boundary(states[cut], last=True, wire=wire)]))
    assert (told.opened.kept, told.opened.reused) == (True, 0)
    if wire is Wire.FLOAT32:
        assert told.tokens == worker.expected(tokens, images)
    # The first is known, the second comes; then both, in another prompt.
    again = ended(worker.begin(replace(opening, known=1), [Boundary(rows[1], last=True, wire=wire)]))
    assert (again.tokens, again.opened.reused) == (told.tokens, len(tokens) - 1)
    moved = (8, *tokens)
    both = replace(opening, known=2, tokens=moved, prompt_length=len(moved))
    assert ended(worker.begin(both, [])).opened.reused == 0
    assert len(worker.encoded) == (1 if cut != "decoder.0" else len(worker.encoded))
    swapped = replace(opening, digests=digests[::-1])
    with pytest.raises(InputError, match="not the one that its digest says"):
        worker.begin(swapped, [Boundary(states[cut], last=True, wire=wire)])
    mixed = [Boundary(rows[0], last=False), Boundary(rows[1], last=True, wire=Wire.FLOAT16)]
    with pytest.raises(InputError, match="in one format"):
        worker.begin(opening, mixed)
    fewer = [token for at, token in enumerate(tokens) if at != 5]
    merged = replace(opening, tokens=tuple(fewer), prompt_length=len(fewer))
    with pytest.raises(InputError, match="image tokens, but images of the grids sent have"):
        worker.begin(merged, [Boundary(states[cut][1:], last=True, wire=wire)])


def test_an_image_that_is_gone_is_asked_for_again(bundle: Bundle) -> None:
    row = 4 * bundle.manifest.decoder.width
    worker = Worker(bundle, room=16 * row)  # of one image
    worker.engine.start()
    try:
        tokens = [*range(5, 9), *worker.image_tokens(0), 5]
        worker.ask(tokens, [0])
        worker.ask([6, *tokens], [1])
        with pytest.raises(WorkerForgot):
            worker.ask(tokens, [0], known=1)
        # Its rows still stand in the slot, so the tower does not run: but then it is not kept either, and it says so.
        told = worker.ask(tokens, [0])
        assert (told.opened.kept, told.opened.reused, worker.encoded) == (False, len(tokens) - 1, [1, 1])
        assert told.tokens == worker.expected(tokens, [0])
    finally:
        worker.engine.stop()


def test_a_worker_without_room_keeps_no_images_and_says_so(bundle: Bundle) -> None:
    worker = Worker(bundle, room=0)
    worker.engine.start()
    try:
        tokens = [*range(5, 9), *worker.image_tokens(0), 5]
        assert not worker.ask(tokens, [0]).opened.kept
        with pytest.raises(WorkerForgot):
            worker.ask(tokens, [0], known=1)
    finally:
        worker.engine.stop()
