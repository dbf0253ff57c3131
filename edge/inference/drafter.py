"""The drafter, the small model on the device, and its conversations."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from cutline.core.sampling import Sampling
from cutline.devices.profile import CPU
from cutline.edge.inference.decoder import Decoder
from cutline.edge.inference.familiarity import averaged
from cutline.edge.inference.kv_cache import History, ImageRows, Key, PrefixCache, PromptRows, Rows, keys_of
from cutline.edge.inference.vision_encoder import VisionSpan
from cutline.errors import BundleError
from cutline.models.bundle import Bundle, Manifest
from cutline.models.images import Pixels, times_of
from cutline.models.law.penalties import NO_PENALTIES, Past
from cutline.models.law.sampling import agreeing, choose
from cutline.models.sight import pieces
from cutline.protos.messages import Likelihood

if TYPE_CHECKING:  # its library is loaded where somebody asks for it
    from cutline.models.law.grammars import CompiledConstraint

PREFILL = 128  # rows of a prompt in a run, where it is run in pieces


@dataclass(frozen=True, slots=True)
class Drafted:
    """A drafted token, the probability (0..1) that the drafter gave it, and its `likelihood` if requested."""

    token: int
    probability: float
    likelihood: Likelihood | None = None


class DraftSource(Protocol):
    """What drafts the answer to one question. For one thread at a time."""

    def draft(self, answer: Sequence[int], limit: int) -> Iterator[Drafted]:
        """Draft the tokens after `answer`, up to `limit` of them or the end of the answer.

        `answer` may differ from what was drafted before. The caller may stop at any token.
        """

    def pooled(self) -> list[NDArray[np.float32]]:
        """The drafter's rows of each image after its tower, averaged to one (width,)."""


class DrafterModel(Protocol):
    """A loaded drafter, as an agent needs it. Conversations share it, each in its own thread."""

    def converse(
        self,
        prompt: Sequence[int],
        pixels: Sequence[Pixels],
        sampling: Sampling,
        *,
        names: Sequence[bytes] | None = None,
        start: int | None = None,
        alternatives: int | None = None,
        compiled: CompiledConstraint | None = None,
        tenant: str = "",
    ) -> DraftSource:
        """What drafts answers to `prompt`, whose image tokens stand for the images in `pixels`: see `Drafter`."""


class OpenDrafter(Protocol):
    """How the drafter in a bundle is loaded, for so many threads of a provider. Raises InputError, BundleError."""

    def __call__(self, bundle: Bundle, *, threads: int, provider: str) -> DrafterModel: ...


class Drafter:
    """A loaded drafter bundle. Conversations share it, each in its own thread."""

    def __init__(self, manifest: Manifest, tower: VisionSpan, decoder: Decoder) -> None:
        self.manifest = manifest
        self._images = ImageRows(tower)
        self._decoder = decoder
        self._prefix_cache = PrefixCache(decoder)

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
        self,
        prompt: Sequence[int],
        pixels: Sequence[Pixels],
        sampling: Sampling,
        *,
        names: Sequence[bytes] | None = None,
        start: int | None = None,
        alternatives: int | None = None,
        compiled: CompiledConstraint | None = None,
        tenant: str = "",
    ) -> DrafterConversation:
        """A conversation that drafts answers to `prompt`, whose image tokens stand for the images in `pixels`.

        `names` are unique names of the images. With them the conversation reuses the cache of an earlier one of
        `tenant` with a common prefix, and is cached itself. `start` is the position of an answer's first token in the
        target's prompt, if that has another length. With `alternatives` tokens have likelihoods, with so many others.
        `compiled` is the sampling's constraint.
        """
        manifest, grids = self.manifest, [image.grid for image in pixels]
        counts = [manifest.family.tokens(grid) for grid in grids]

        def image(index: int) -> Rows:
            return self._images.of(pixels[index], None if names is None else names[index])

        images = image if names is not None else functools.cache(image)  # nothing else keeps the rows

        known = range(len(pixels)) if names is None else names
        keys = keys_of(prompt, manifest.image_token, list(zip(known, counts, strict=True)))
        positions = manifest.family.positions(np.array(prompt) == manifest.image_token, grids, times_of(pixels))
        history = (
            History(self._decoder, positions) if names is None else self._prefix_cache.begin(keys, positions, tenant)
        )
        drafting = DrafterConversation(
            self._decoder,
            history,
            keys,
            PromptRows(self._decoder, prompt, manifest.image_token, counts, images),
            manifest,
            Choosing(sampling=sampling, compiled=compiled, start=start, alternatives=alternatives),
        )
        if names is not None:
            self._prefix_cache.keep_after(drafting, history)
        return drafting


@dataclass(frozen=True, slots=True, kw_only=True)
class Choosing:
    """How drafted tokens are chosen: by `sampling`, whose constraint is `compiled`.

    `start` is the position at which the law counts the answer's first token: after the prompt, if not given. With
    `alternatives` tokens come with their likelihoods, and with those of so many others.
    """

    sampling: Sampling
    compiled: CompiledConstraint | None = None
    start: int | None = None
    alternatives: int | None = None


class DrafterConversation:
    """One conversation of the drafter. For one thread at a time.

    `prompt` has a key for each of its tokens, `history` those in the decoder's cache. The prompt's `rows` are computed
    when the first token is drafted.
    """

    def __init__(
        self,
        decoder: Decoder,
        history: History,
        prompt: Sequence[Key],
        rows: PromptRows,
        manifest: Manifest,
        how: Choosing,
    ) -> None:
        self._decoder = decoder
        self._history = history
        self._prompt = prompt
        self._rows = rows
        self._sampling, self._compiled = how.sampling, how.compiled
        self._stop_tokens = how.sampling.stops(manifest.stop_tokens)
        self._penalties = manifest.penalties
        self._start = len(prompt) if how.start is None else how.start
        self._alternatives = how.alternatives

    def draft(self, answer: Sequence[int], limit: int) -> Iterator[Drafted]:
        """Draft the tokens after `answer`, up to `limit` of them or the end of the answer.

        `answer` may differ from what was drafted before; the cache is rolled back to the common prefix. The caller may
        stop at any token.
        """
        logits = self._catch_up(answer)
        past = self._past(answer, logits)
        for position in range(self._start + len(answer), self._start + len(answer) + limit):
            token = choose(logits if past is None else past.penalised(logits), self._sampling, position)
            likelihood = None if self._alternatives is None else likelihood_of(logits, token, self._alternatives)
            yield Drafted(token, _probability(logits, token), likelihood)
            if token in self._stop_tokens or len(self._history.keys) >= self._decoder.spec.context:
                return
            if past is not None:
                past.extend([token])
            logits = _last(self._feed([token], last_only=True))

    def pooled(self) -> list[NDArray[np.float32]]:
        """The rows of each image after the tower, averaged to one (width,)."""
        return [averaged(self._rows.image(index)) for index in range(len(self._rows.counts))]

    def logits(self, answer: Sequence[int]) -> NDArray[np.float32]:
        """The drafter's logits (len(answer) + 1, vocabulary) at each position of a given answer."""
        first = self._catch_up(())[None]
        return np.concatenate([first, self._feed(answer, last_only=False)]) if answer else first

    def _past(self, answer: Sequence[int], like: NDArray[np.float32]) -> Past | None:
        """The tokens up to the end of `answer` with their penalties; None without penalties."""
        if self._penalties == NO_PENALTIES and not self._sampling.penalises:
            return None
        past = Past(
            self._penalties,
            self._rows.prompt,
            sampling=self._sampling,
            matcher=None if self._compiled is None else self._compiled.matcher(),
            first=self._start,
            stop_tokens=self._stop_tokens,
            like=like,
        )
        past.extend(answer)
        return past

    def _catch_up(self, answer: Sequence[int]) -> NDArray[np.float32]:
        """Extend or roll back the cache to the prompt and `answer`; returns the logits (vocabulary,) after them."""
        history, length = self._history, len(self._prompt)
        if not answer:
            history.rollback(min(len(history.keys), length - 1))  # the last token runs again, for its logits
        if (cached := len(history.keys)) < length:
            rows, logits = self._rows.after(cached), np.empty((0, 0), np.float32)
            # What rows see is as wide as the prompt for each of them, where the graph is told: then in pieces.
            most = PREFILL if self._decoder.biases else length
            for start, end in pieces(history.blocks, cached, length, most):
                part = rows[start - cached : end - cached]
                logits = history.extend(part, self._prompt[start:end], last_only=True)
            if not answer:
                return _last(logits)
        # The last token of the answer runs again too, for its logits.
        keep = min(agreeing(history.keys[length:], answer), len(answer) - 1)
        history.rollback(length + keep)
        return _last(self._feed(answer[keep:], last_only=True))

    def _feed(self, tokens: Sequence[int], *, last_only: bool) -> NDArray[np.float32]:
        return self._history.extend(self._decoder.embed(tokens), tokens, last_only=last_only)


def likelihoods_of(drafted: Sequence[Drafted]) -> list[Likelihood]:
    """The likelihoods of drafted tokens; empty if they were not requested."""
    return [draft.likelihood for draft in drafted if draft.likelihood is not None]


def likelihood_of(logits: NDArray[np.float32], token: int, alternatives: int) -> Likelihood:
    """The likelihood of `token` by the logits (vocabulary,), with so many of the likeliest; of equal ones the first."""
    logprobs = logits - logits.max().astype(np.float64)
    logprobs -= np.log(np.exp(logprobs).sum())
    least = np.partition(logprobs, -alternatives)[-alternatives] if 0 < alternatives < len(logprobs) else -np.inf
    among = np.flatnonzero(logprobs >= least)
    best = among[np.argsort(-logprobs[among], kind="stable")][:alternatives]
    return Likelihood(float(logprobs[token]), tuple((int(other), float(logprobs[other])) for other in best))


def _last(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The last row (vocabulary,) of logits (n, vocabulary)."""
    row: NDArray[np.float32] = logits[-1]
    return row


def _probability(logits: NDArray[np.float32], token: int) -> float:
    return float(1.0 / np.exp(logits - logits[token], dtype=np.float64).sum())
