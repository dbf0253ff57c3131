"""The drafter: the small model on the device, and one conversation's drafting with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cutline.edge.decoder import Decoder
from cutline.edge.runtime import CPU
from cutline.edge.vision import VisionSpan
from cutline.errors import BundleError
from cutline.models.bundle import Bundle, Manifest
from cutline.models.families.family import Positions
from cutline.models.images import Pixels
from cutline.models.sampling import Sampling, agreeing, choose


@dataclass(frozen=True, slots=True)
class Drafted:
    """A token that the drafter chose, and the probability (0..1) that it gave it."""

    token: int
    probability: float


class Drafter:
    """A loaded drafter bundle. Conversations share it; several threads may draft at once, each its own."""

    def __init__(self, manifest: Manifest, tower: VisionSpan, decoder: Decoder) -> None:
        self.manifest = manifest
        self._tower = tower
        self._decoder = decoder

    @classmethod
    def open(cls, bundle: Bundle, *, threads: int, provider: str = CPU) -> Drafter:
        """Load a drafter's bundle. Raises InputError, BundleError."""
        if bundle.manifest.role != "drafter":
            raise BundleError(f"{bundle.path} holds a {bundle.manifest.role}; an agent needs a drafter's bundle")
        return cls(
            bundle.manifest,
            VisionSpan.open(bundle, "decoder.0", threads=threads, provider=provider),
            Decoder.open(bundle, threads=threads, provider=provider),
        )

    def converse(
        self, prompt: Sequence[int], pixels: Pixels | None, sampling: Sampling, *, start: int | None = None
    ) -> Drafting:
        """Begin to draft answers to `prompt`, whose image tokens stand for `pixels`.

        `start` is the position of an answer's first token in the target's prompt, where that is of another length.
        """

        places = np.array(prompt) == self.manifest.image_token
        grids = [] if pixels is None else [pixels.grid]

        def rows() -> NDArray[np.float32]:
            embedded = self._decoder.embed(prompt)
            if pixels is not None:
                embedded[places] = self._tower(pixels.values, grids)
            return embedded

        positions = self.manifest.family.positions(places, grids)
        stop_tokens = frozenset(self.manifest.stop_tokens)
        return Drafting(self._decoder, len(prompt), rows, sampling, stop_tokens, positions=positions, start=start)


class Drafting:
    """One conversation of the drafter. Not for two threads at once.

    `rows` gives the prompt's rows (n, width); it is called when the first token is drafted. The decoder sees tokens at
    `positions`. `start` is the position at which the law counts the answer's first: after the prompt, if not given.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompt_length: int,
        rows: Callable[[], NDArray[np.float32]],
        sampling: Sampling,
        stop_tokens: frozenset[int],
        *,
        positions: Positions | None = None,
        start: int | None = None,
    ) -> None:
        self._decoder = decoder
        self._prompt_length = prompt_length
        self._start = prompt_length if start is None else start
        self._rows = rows
        self._prompt_rows = np.empty((0, decoder.spec.width), np.float32)
        self._sampling = sampling
        self._stop_tokens = stop_tokens
        self._state = decoder.new_state(positions)
        self._fed: list[int] = []  # answer tokens in the state, after the prompt

    def draft(self, answer: Sequence[int], limit: int) -> Iterator[Drafted]:
        """Tokens that may follow `answer`, up to `limit` of them or the end of the answer.

        `answer` may differ from what was drafted before: the state goes back to where they part. The caller may
        stop asking at any token.
        """
        logits = self._catch_up(answer)
        for position in range(self._start + len(answer), self._start + len(answer) + limit):
            token = choose(logits, self._sampling, position)
            yield Drafted(token, _probability(logits, token))
            if token in self._stop_tokens or self._state.position >= self._decoder.spec.context:
                return
            logits = _last(self._feed([token], last_only=True))

    def logits(self, answer: Sequence[int]) -> NDArray[np.float32]:
        """What the drafter makes of a given answer: logits (len(answer) + 1, vocabulary), from its first token on."""
        first = self._catch_up(())[None]
        return np.concatenate([first, self._feed(answer, last_only=False)]) if answer else first

    def _catch_up(self, answer: Sequence[int]) -> NDArray[np.float32]:
        """Bring the state to the prompt and `answer`; returns the logits (vocabulary,) after them."""
        if self._state.position == 0:
            self._prompt_rows = self._rows()
            first = self._state.extend(self._prompt_rows, last_only=True)
            if not answer:
                return _last(first)
        # The last token is fed anew even if the state has it: its logits are what is asked for.
        keep = min(agreeing(self._fed, answer), max(len(answer) - 1, 0))
        del self._fed[keep:]
        if not answer:
            self._state.rollback(self._prompt_length - 1)
            return _last(self._state.extend(self._prompt_rows[-1:], last_only=True))
        self._state.rollback(self._prompt_length + keep)
        return _last(self._feed(answer[keep:], last_only=True))

    def _feed(self, tokens: Sequence[int], *, last_only: bool) -> NDArray[np.float32]:
        logits = self._state.extend(self._decoder.embed(tokens), last_only=last_only)
        self._fed += tokens
        return logits


def _last(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The last row (vocabulary,) of logits (n, vocabulary)."""
    row: NDArray[np.float32] = logits[-1]
    return row


def _probability(logits: NDArray[np.float32], token: int) -> float:
    return float(1.0 / np.exp(logits - logits[token], dtype=np.float64).sum())
