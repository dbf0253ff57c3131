"""The device's part of a target: the layers `[image, cut)`, and the boundary at the cut in one conversation.

Up to `decoder.0` the boundary has the image's rows only, and the worker embeds the tokens. At a cut inside the decoder
it has a row for every token: the device embeds them, and has the KV cache of its own layers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cutline.devices.profile import CPU
from cutline.edge.inference.boundary_noise import Noise
from cutline.edge.inference.decoder import Decoder
from cutline.edge.inference.kv_cache import History, ImageRows, Key, PrefixCache, PromptRows, Rows, keys_of
from cutline.edge.inference.token_merging import merge_runs, parts_of, shorten
from cutline.edge.inference.vision_encoder import VisionSpan
from cutline.errors import BundleError, InputError
from cutline.models.bundle import Bundle, Manifest, span_file
from cutline.models.images import Pixels, times_of
from cutline.models.law.sampling import agreeing
from cutline.models.sight import pieces

PREFILL = 128  # rows a run: while some are in flight, the next are computed
MAX_SPANS = 8  # loaded at once, so that a plan that alternates between cuts reloads none of them


def device_cuts(manifest: Manifest) -> tuple[str, ...]:
    """The cuts for which a bundle has graphs."""
    line, files = manifest.line, manifest.files
    shallow = [cut for cut in line.image_cuts if span_file(cut) in files]
    deep = [cut for cut in line.deep_cuts if span_file(cut, "decoder.0") in files]
    return (*shallow, *(deep if "decoder.0" in shallow else []))


def check_cut(bundle: Bundle, cut: str) -> None:
    """Check that a device can run `[image, cut)` of a target's bundle, for a cut after `image`.

    Raises InputError, BundleError.
    """
    manifest = bundle.manifest
    if manifest.role != "target":
        raise BundleError(f"{bundle.path} holds a {manifest.role}; only a target is cut")
    if cut not in manifest.line.cuts[1:]:
        raise InputError(f"{manifest.name} has no cut {cut[:40]!r}; cuts: {', '.join(manifest.line.cuts)}")
    if cut not in (cuts := device_cuts(manifest)):
        raise InputError(f"{manifest.name} has no graphs for the cut {cut}, only for {', '.join(cuts) or 'none'}")


class TargetSpan:
    """The layers `[image, cut)` of a target, for a cut after `image`. Conversations share it, in any threads."""

    def __init__(self, manifest: Manifest, cut: str, tower: VisionSpan, prefix: Decoder | None) -> None:
        self._manifest = manifest
        self._streams = manifest.family.streams(manifest.line, cut)
        self._images = ImageRows(tower)
        self._prefix = prefix
        self._prefix_cache = None if prefix is None else PrefixCache(prefix)

    @classmethod
    def open(cls, bundle: Bundle, cut: str, *, threads: int, provider: str = CPU) -> TargetSpan:
        """Load the span that ends at `cut`, with its weights only. Raises InputError, BundleError."""
        check_cut(bundle, cut)
        manifest = bundle.manifest
        if cut in manifest.line.image_cuts:
            return cls(manifest, cut, VisionSpan.open(bundle, cut, threads=threads, provider=provider), None)
        return cls(
            manifest,
            cut,
            VisionSpan.open(bundle, "decoder.0", threads=threads, provider=provider),
            Decoder.open_prefix(bundle, cut, threads=threads, provider=provider),
        )

    def converse(
        self,
        prompt: Sequence[int],
        pixels: Sequence[Pixels],
        *,
        names: Sequence[bytes] | None = None,
        fresh: bool = False,
        keep: float = 1.0,
        noise: Noise | None = None,
        tenant: str = "",
    ) -> Crossing:
        """The crossing for `prompt`, whose image tokens stand for the images in `pixels`.

        `names` are unique names of the images. With them rows and KV caches of `tenant`'s earlier conversations are
        reused, unless this one is `fresh`. `keep` is the share of the image tokens that enters the decoder, for a cut
        from `decoder.0` on. `noise` is added to what crosses, not to what is computed here; it needs names.
        """
        assert noise is None or names is not None
        manifest, token = self._manifest, self._manifest.image_token
        reused = None if fresh else names
        grids = [image.grid for image in pixels]
        parts = parts_of(prompt, token, [manifest.family.tokens(grid) for grid in grids]) if keep < 1.0 else []

        def image(index: int) -> Rows:
            rows = self._images.of(pixels[index], None if reused is None else reused[index])
            return merge_runs(rows, parts[index], token, keep) if parts else rows

        if self._prefix is None or self._prefix_cache is None:

            def blurred(index: int) -> Rows:
                rows = image(index)
                if noise is not None and names is not None:
                    rows = noise.on_image(rows, names[index], keep)
                return rows.reshape(len(rows) * self._streams, -1)

            return Crossing(len(pixels), blurred)
        short = shorten(prompt, token, keep)
        counts = [shorten(part, token, keep).count(token) for part in parts] or [*map(manifest.family.tokens, grids)]
        known = range(len(pixels)) if names is None else names
        keys = keys_of(short, token, [((name, keep), count) for name, count in zip(known, counts, strict=True)])
        positions = manifest.family.positions(np.array(short) == token, grids, times_of(pixels))
        history = (
            History(self._prefix, positions) if reused is None else self._prefix_cache.begin(keys, positions, tenant)
        )
        rows = PromptRows(self._prefix, short, token, counts, image)
        crossing = Crossing(len(pixels), image, Prefixed(keys, rows, history, noise))
        if reused is not None:
            self._prefix_cache.keep_after(crossing, history)
        return crossing

    def forget(self) -> None:
        """Empty the caches of ended conversations."""
        self._images.clear()
        if self._prefix_cache is not None:
            self._prefix_cache.clear()


class LoadedSpans:
    """The MAX_SPANS spans of a target that were used last. A conversation holds its own span until it ends.

    For any threads: one loads at a time, so no span is loaded twice.
    """

    def __init__(self, bundle: Bundle, *, threads: int, provider: str = CPU) -> None:
        self._bundle = bundle
        self._threads = threads
        self._provider = provider
        self._spans: dict[str, TargetSpan] = {}  # in the order of use
        self._lock = threading.Lock()

    @property
    def cuts(self) -> frozenset[str]:
        """The cuts of the loaded spans, without waiting for one that is being loaded."""
        return frozenset(tuple(self._spans))

    def open(self, cut: str) -> TargetSpan:
        """The span that ends at `cut`, loaded if needed. Raises InputError, BundleError."""
        with self._lock:
            span = self._spans.pop(cut, None)
            while len(self._spans) >= MAX_SPANS:  # before loading, so that there are never more
                del self._spans[next(iter(self._spans))]
            if span is None:
                span = TargetSpan.open(self._bundle, cut, threads=self._threads, provider=self._provider)
            for other in self._spans.values():  # conversations are cached for one cut only
                other.forget()
            self._spans[cut] = span
            return span


@dataclass(frozen=True, slots=True, eq=False)
class Prefixed:
    """A prompt at a cut inside the decoder: keys and rows of its tokens, and the `history` in the prefix's cache.

    `noise` is added to all rows that cross.
    """

    keys: Sequence[Key]
    rows: PromptRows
    history: History
    noise: Noise | None = None

    def crossed(self, rows: Rows, end: int) -> Rows:
        """The `rows` of the last tokens before index `end`, with noise if there is any."""
        return rows if self.noise is None else self.noise.on_tokens(rows, self.history.keys[:end])


class Crossing:
    """What crosses a cut in one conversation. For one thread at a time.

    At a cut up to `decoder.0` it is the rows of so many `images`, each computed by `image`, with a row a stream. Inside
    the decoder the prompt is `prefixed`, and every token crosses as a row.
    """

    def __init__(self, images: int, image: Callable[[int], Rows], prefixed: Prefixed | None = None) -> None:
        self.image = image
        self._images = images
        self._prefixed = prefixed

    @property
    def deep(self) -> bool:
        """Whether every token crosses as a row."""
        return self._prefixed is not None

    def opening(self, tokens: Sequence[int]) -> Iterator[Rows]:
        """The boundary of a session's opening, in parts as they are computed: for the prompt and the `tokens` after it.

        Rows in the cache are not computed again.
        """
        if self._prefixed is None:
            yield from map(self.image, range(self._images))
            return
        history, rows, keys = self._prefixed.history, self._prefixed.rows, [*self._prefixed.keys, *tokens]
        cached, length = agreeing(history.keys, keys), len(self._prefixed.keys)
        history.rollback(cached)
        if cached:
            yield self._prefixed.crossed(history.made[:cached].copy(), cached)
        left = np.concatenate([rows.after(min(cached, length)), rows.decoder.embed(tokens[max(0, cached - length) :])])
        for start, end in pieces(history.blocks, cached, len(keys), PREFILL):
            part = left[start - cached : end - cached]
            yield self._prefixed.crossed(history.extend(part, keys[start:end]), end)

    def again(self, answered: int, tokens: Sequence[int]) -> Rows:
        """The boundary rows of `tokens` after the first `answered` tokens of the answer; later ones are rolled back.

        Raises PromptError if the target's context has no room for them.
        """
        assert self._prefixed is not None
        history, start = self._prefixed.history, len(self._prefixed.keys) + answered
        history.rollback(start)
        rows = history.extend(self._prefixed.rows.decoder.embed(tokens), tokens)
        return self._prefixed.crossed(rows, start + len(tokens))
