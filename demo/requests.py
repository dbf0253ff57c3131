"""Requests for the demo's models: cards of one split, a question of every kind about each, with the right answers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cutline.demo.cards import Card, Scans, Split, draw
from cutline.demo.questions import KINDS, CardQuestion, ask


@dataclass(frozen=True, slots=True)
class CardRequest:
    """One question about one card, whose picture is `image` (a PNG file)."""

    card: Card
    image: bytes
    question: CardQuestion


def requests(source: Split | Scans, cards: int, seed: int) -> Iterator[CardRequest]:
    """A question of every kind about each of `cards` cards of a split, or of others' scans; the same seed gives the
    same requests.
    """
    rng = np.random.default_rng(seed)
    batch = draw(source, cards, rng)
    for index in range(cards):
        card = batch.card(index)
        image = png(card.pixels)
        for kind in KINDS:
            yield CardRequest(card, image, ask(card, kind, rng))


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A picture (height, width, 3) as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
