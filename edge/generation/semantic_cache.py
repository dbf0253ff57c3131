"""A semantic memory of recent answers: the same question about a near-identical picture need not be answered again.

Pictures are compared small and in colour, block by block, and it is the block that differs most which counts: an object
that came or went in a corner is not averaged away by all that stayed. What that misses is measured (bench/memory.py).
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cutline.core.request import Request
from cutline.edge.generation.result import Answer, Recalled

SIDE, BLOCK = 32, 4  # pixels of a miniature, and of its blocks: so few average a sensor's noise away
THRESHOLD = 0.05  # share of the whole range, in the block that differs most
ENTRIES = 256  # answers at most; each takes some 4 kB

Miniature = NDArray[np.float32]  # (SIDE, SIDE, 3), 0..1


@dataclass(frozen=True, slots=True)
class _Entry:
    shown: tuple[Miniature, ...]
    answer: Answer
    given_at: float


class SemanticCache:
    """Answers of the last `seconds`, at most ENTRIES. For any threads."""

    def __init__(
        self, seconds: float, *, threshold: float = THRESHOLD, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._threshold = threshold
        self._clock = clock
        self._turn = threading.Lock()
        self._entries: OrderedDict[Hashable, list[_Entry]] = (
            OrderedDict()
        )  # by what was asked, the last asked at the end

    def find(self, question: Request, pictures: Sequence[Image.Image]) -> tuple[Answer, Recalled] | None:
        """The answer that was given to the same question about the nearest `pictures`, if they are near enough."""
        now, shown = self._clock(), miniatures(pictures)
        with self._turn:
            self._forget(now)
            entries = tuple(self._entries.get(_asked(question), ()))
        near = [(max(map(distance, entry.shown, shown), default=0.0), entry) for entry in entries]
        least, entry = min(near, key=lambda one: one[0], default=(1.0, None))
        if entry is None or least >= self._threshold:
            return None
        return entry.answer, Recalled(age_ms=(now - entry.given_at) * 1e3, distance=least)

    def keep(self, question: Request, pictures: Sequence[Image.Image], answer: Answer) -> None:
        """Remember an answer; not one that was cut short, remembered itself, or finished without its worker."""
        if not answer.complete or answer.recalled is not None or answer.alone_from is not None:
            return
        entry = _Entry(miniatures(pictures), answer, self._clock())
        with self._turn:
            self._entries.setdefault(_asked(question), []).append(entry)
            self._entries.move_to_end(_asked(question))
            while sum(map(len, self._entries.values())) > ENTRIES:
                self._drop(next(iter(self._entries)))

    def _forget(self, now: float) -> None:
        """Forget what is too old."""
        for asked, entries in tuple(self._entries.items()):
            while entries and now - entries[0].given_at > self._seconds:
                self._drop(asked)

    def _drop(self, asked: Hashable) -> None:
        """Drop the oldest answer to a question."""
        del self._entries[asked][0]
        if not self._entries[asked]:
            del self._entries[asked]


def miniatures(pictures: Sequence[Image.Image]) -> tuple[Miniature, ...]:
    """Small pictures (SIDE, SIDE, 3) in 0..1."""
    small = (picture.resize((SIDE, SIDE), Image.Resampling.BOX) for picture in pictures)
    return tuple(np.asarray(picture, np.float32) / np.float32(255) for picture in small)


def distance(first: Miniature, second: Miniature) -> float:
    """The mean absolute difference in the block where it is largest."""
    blocks = np.abs(first - second).reshape(SIDE // BLOCK, BLOCK, SIDE // BLOCK, BLOCK, 3)
    return float(blocks.mean(axis=(1, 3, 4)).max())


def _asked(question: Request) -> Hashable:
    """All of a question that its answer depends on, but for the pictures' pixels."""
    return (
        question.tenant,
        question.messages,
        len(question.images),
        question.mode,
        question.sampling,
        question.max_tokens,
        question.stop,
        question.logprobs,
        question.cut,
        question.wire,
        question.tools,
        question.image_tokens,
        question.keep_image_tokens,
        question.noise,
        question.image_must_stay,
        question.min_agreement,
        question.max_leak,
    )
