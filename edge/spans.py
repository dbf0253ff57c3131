"""The device's part of a target: `[image, cut)` for every cut, and what crosses the cut in one conversation.

Up to `decoder.0` that is the boundary of the image alone, and the worker embeds the tokens. At a cut inside the decoder
it is a boundary row of every token: the device embeds them, and keeps keys and values of its own layers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from cutline.edge.decoder import Decoder, DecoderState
from cutline.edge.merging import merge_runs, shorten
from cutline.edge.runtime import CPU
from cutline.edge.vision import VisionSpan
from cutline.errors import BundleError, InputError
from cutline.models.bundle import Bundle, Manifest, span_file
from cutline.models.images import Pixels

PREFILL = 128  # rows a run: while they are on their way, the next are computed
SPANS = 8  # that stay loaded: a plan that wavers between cuts loads none of them anew

Rows = NDArray[np.float32]  # (n, width)


def device_cuts(manifest: Manifest) -> tuple[str, ...]:
    """The cuts that a bundle has the graphs for."""
    line, files = manifest.line, manifest.files
    shallow = [cut for cut in line.image_cuts if span_file(cut) in files]
    deep = [cut for cut in line.deep_cuts if span_file(cut, "decoder.0") in files]
    return (*shallow, *(deep if "decoder.0" in shallow else []))


def check_cut(bundle: Bundle, cut: str) -> None:
    """That a device can run `[image, cut)` of a target's bundle, for a cut after `image`.

    Raises InputError, BundleError.
    """
    manifest = bundle.manifest
    if manifest.role != "target":
        raise BundleError(f"{bundle.path} holds a {manifest.role}; only a target is cut")
    if cut not in manifest.line.layers[1:]:
        raise InputError(f"{manifest.name} has no cut {cut[:40]!r}; cuts: {', '.join(manifest.line.layers)}")
    if cut not in (cuts := device_cuts(manifest)):
        raise InputError(f"{bundle.path} has no graphs for the cut {cut}, only for {', '.join(cuts) or 'none'}")


class TargetSpan:
    """The layers `[image, cut)` of a target, for any cut but `image`. Conversations share it, in any threads."""

    def __init__(self, manifest: Manifest, tower: VisionSpan, prefix: Decoder | None) -> None:
        self._manifest = manifest
        self._tower = tower
        self._prefix = prefix

    @classmethod
    def open(cls, bundle: Bundle, cut: str, *, threads: int, provider: str = CPU) -> TargetSpan:
        """Load the span that ends at `cut`, and no weights beyond it. Raises InputError, BundleError."""
        check_cut(bundle, cut)
        manifest = bundle.manifest
        if cut in manifest.line.image_cuts:
            return cls(manifest, VisionSpan.open(bundle, cut, threads=threads, provider=provider), None)
        return cls(
            manifest,
            VisionSpan.open(bundle, "decoder.0", threads=threads, provider=provider),
            Decoder.open_prefix(bundle, cut, threads=threads, provider=provider),
        )

    def converse(self, prompt: Sequence[int], pixels: Pixels, *, keep: float = 1.0) -> Crossing:
        """Run the image through the span, as far as that goes without the prompt's words.

        `pixels` are those of the image tokens in `prompt`. `keep` is the share of them that enters the decoder, at a
        cut from `decoder.0` on.
        """
        image_token, grids = self._manifest.image_token, [pixels.grid]
        rows = self._tower(pixels.values, grids)
        if keep < 1.0:
            rows = merge_runs(rows, prompt, image_token, keep)
            prompt = shorten(prompt, image_token, keep)
        if self._prefix is None:
            return Crossing(len(prompt), rows)
        places = np.array(prompt) == image_token
        embedded = self._prefix.embed(prompt)
        embedded[places] = rows
        state = self._prefix.new_state(self._manifest.family.positions(places, grids))
        return Crossing(len(prompt), embedded, self._prefix, state)


class LoadedSpans:
    """The spans of a target that were used last, SPANS of them; a conversation keeps its own until it ends.

    Threads may share it: one loads at a time, and none loads what another has just loaded.
    """

    def __init__(self, bundle: Bundle, *, threads: int, provider: str = CPU) -> None:
        self._bundle = bundle
        self._threads = threads
        self._provider = provider
        self._spans: dict[str, TargetSpan] = {}  # the one used last at the end
        self._turn = threading.Lock()

    @property
    def cuts(self) -> frozenset[str]:
        """The cuts whose spans are loaded; does not wait for one that is being loaded."""
        return frozenset(tuple(self._spans))

    def open(self, cut: str) -> TargetSpan:
        """The span that ends at `cut`, loaded if it is not. Raises InputError, BundleError."""
        with self._turn:
            span = self._spans.pop(cut, None)
            while len(self._spans) >= SPANS:  # before loading, so that no more are ever held
                del self._spans[next(iter(self._spans))]
            if span is None:
                span = TargetSpan.open(self._bundle, cut, threads=self._threads, provider=self._provider)
            self._spans[cut] = span
            return span


class Crossing:
    """What crosses a cut in one conversation. Not for two threads at once.

    `rows` are those of the image at a cut before the decoder; inside it the embedded prompt's, with the `prefix` that
    takes them and an empty `state` of it.
    """

    def __init__(
        self, prompt_length: int, rows: Rows, prefix: Decoder | None = None, state: DecoderState | None = None
    ) -> None:
        self._prompt_length = prompt_length
        self._rows = rows
        self._prefix = prefix
        self._state = state

    @property
    def length(self) -> int:
        """Rows that open a session without a draft."""
        return len(self._rows)

    @property
    def deep(self) -> bool:
        """Whether every token crosses as a row."""
        return self._prefix is not None

    def opening(self, draft: Sequence[int]) -> Iterator[Rows]:
        """The boundary that opens a session with a first `draft`, in parts as they are computed."""
        if self._prefix is None or self._state is None:
            yield self._rows
            return
        rows = np.concatenate([self._rows, self._prefix.embed(draft)]) if draft else self._rows
        for start in range(0, len(rows), PREFILL):
            yield self._state.extend(rows[start : start + PREFILL])

    def again(self, answered: int, tokens: Sequence[int]) -> Rows:
        """The boundary rows of `tokens`, which follow the first `answered` of the answer; what was there is forgotten.

        Raises PromptError when the target's context has no room for them.
        """
        assert self._prefix is not None
        assert self._state is not None
        self._state.rollback(self._prompt_length + answered)
        return self._state.extend(self._prefix.embed(tokens))
