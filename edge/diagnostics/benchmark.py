"""Measures a model on this device: seconds of each layer on ONNX Runtime, of drafting, and of preparing an image.

A span's graph runs as a whole, so the seconds of a layer are the difference of two spans, one of which ends a layer
later. As times are noisy, those of longer and longer spans are first made monotonic (`rising`). So no layer takes less
than 0 seconds, and the layers still add up to their span.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from cutline.core.sampling import Sampling
from cutline.devices.measurement.rates import median_seconds, significant
from cutline.devices.measurement.workload import one_tile, photograph, row_counts
from cutline.devices.profile import CPU, DrafterTable, LayerTable
from cutline.edge.inference.decoder import Decoder, DecoderState
from cutline.edge.inference.drafter import Drafter
from cutline.edge.inference.kv_cache import Rows
from cutline.edge.inference.target_prefix import PREFILL, device_cuts
from cutline.edge.inference.vision_encoder import VisionSpan
from cutline.models.bundle import Bundle, Manifest
from cutline.models.images import decode_image

TOKENS, TOGETHER = 64, 8  # tokens drafted one by one, and how many are timed together
_MAX_SPANS = 9  # measured in the tower, and in the decoder: the layers between two of them are alike

OnStep = Callable[[str], None]  # called with the name of each step
Times = dict[str, float]  # seconds of the spans [start, cut), by cut


def target_table(bundle: Bundle, *, threads: int, seconds: float, provider: str = CPU, on_step: OnStep) -> LayerTable:
    """Measure the layers of a target's bundle that have graphs for a device, in about `seconds` plus loading.

    Raises InputError, BundleError.
    """
    manifest = bundle.manifest
    cuts = device_cuts(manifest)
    shallow = _some([cut for cut in cuts if cut in manifest.line.image_cuts and cut != "image"])
    deep = _some([cut for cut in cuts if cut in manifest.line.deep_cuts])
    budget = seconds / max(1, 2 * (len(shallow) + len(deep)))
    tile = one_tile(manifest)
    patches = manifest.family.patches(tile.grid)

    towers: Times = {}
    for cut in _there_and_back(shallow):
        on_step(f"target, image to {cut}")
        span = VisionSpan.open(bundle, cut, threads=threads, provider=provider)
        _note(towers, cut, median_seconds(span, tile.values, [tile.grid], budget=budget))
    layers = {name: ((patches, taken),) for name, taken in _by_layer(manifest, "image", towers)}

    counts, behind = row_counts(manifest.decoder.context)
    prefixes: dict[int, Times] = {rows: {} for rows in counts}
    for cut in _there_and_back(deep):
        on_step(f"target, decoder.0 to {cut}")
        prefix = Decoder.open_prefix(bundle, cut, threads=threads, provider=provider)
        for rows, taken in _timed(prefix, counts, behind, budget):
            _note(prefixes[rows], cut, taken)
    samples: dict[str, list[tuple[int, float]]] = {}
    for rows, times in prefixes.items():
        for name, taken in _by_layer(manifest, "decoder.0", times):
            samples.setdefault(name, []).append((rows, taken))
    return LayerTable(
        model=manifest.identity,
        name=manifest.name,
        runtime="edge",
        dtype=manifest.precision,
        context=behind if deep else 0,
        layers=layers | {name: tuple(taken) for name, taken in samples.items()},
        provider=provider,
    )


def drafter_table(
    bundle: Bundle, *, threads: int, seconds: float, provider: str = CPU, on_step: OnStep
) -> DrafterTable:
    """Measure a drafter's bundle in about `seconds` plus loading. Raises InputError, BundleError."""
    manifest = bundle.manifest
    on_step("drafter")
    tower = VisionSpan.open(bundle, "decoder.0", threads=threads, provider=provider)
    decoder = Decoder.open(bundle, threads=threads, provider=provider)
    tile = one_tile(manifest)
    counts, behind = row_counts(manifest.decoder.context)
    state, noise = decoder.new_state(), _noise(decoder, counts[-1])
    prefill = [(rows, median_seconds(_prefill, state, noise[:rows], True, budget=seconds / 8)) for rows in counts[1:]]
    return DrafterTable(
        model=manifest.identity,
        name=manifest.name,
        precision=manifest.precision,
        vision_seconds=median_seconds(tower, tile.values, [tile.grid], budget=seconds / 4),
        prefill=tuple(prefill),
        token_seconds=_token_seconds(Drafter(manifest, tower, decoder), behind),
        provider=provider,
    )


def image_seconds(manifest: Manifest, image: bytes | None = None) -> tuple[float, float]:
    """Seconds to decode and preprocess an image file, and to shrink it for the upload; one of 1024 x 768 by default."""
    file = image or photograph()
    picture = decode_image(file)
    return (
        median_seconds(lambda: manifest.family.preprocess(decode_image(file)), budget=0.5),
        median_seconds(lambda: manifest.family.shrink(file, picture), budget=0.5),
    )


def rising(times: Sequence[float]) -> list[float]:
    """The monotonic sequence nearest to `times` by least squares (pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []  # (mean, count)
    for seconds in times:
        mean, count = seconds, 1
        while blocks and blocks[-1][0] > mean:
            other, more = blocks.pop()
            mean, count = (mean * count + other * more) / (count + more), count + more
        blocks.append((mean, count))
    return [mean for mean, count in blocks for _ in range(count)]


def _by_layer(manifest: Manifest, start: str, times: Times) -> Iterator[tuple[str, float]]:
    """Each layer's seconds from those of spans that begin at `start`, with their cuts in order.

    The layers between two cuts share the difference, as they are alike.
    """
    line = manifest.line
    first, before = line.place(start), 0.0
    for cut, taken in zip(times, rising(list(times.values())), strict=True):
        names = line.layers[first : line.place(cut)]
        yield from ((name, significant((taken - before) / len(names))) for name in names)
        first, before = line.place(cut), taken


def _there_and_back(cuts: Sequence[str]) -> list[str]:
    """Each cut twice and far apart in time, as the machine may be busy with something else once."""
    return [*cuts, *reversed(cuts)]


def _note(times: Times, cut: str, taken: float) -> None:
    """Keep the smaller of the two times, which has less of the machine's other work."""
    times[cut] = min(taken, times.get(cut, taken))


def _some(cuts: Sequence[str]) -> list[str]:
    """The first two, the last two, and evenly spaced ones between; all if there are at most _MAX_SPANS."""
    if len(cuts) <= _MAX_SPANS:
        return list(cuts)
    between = np.linspace(1, len(cuts) - 2, _MAX_SPANS - 2).round().astype(int)
    return [cuts[0], *(cuts[index] for index in between), cuts[-1]]


def _timed(prefix: Decoder, counts: Sequence[int], behind: int, budget: float) -> Iterator[tuple[int, float]]:
    """Seconds of steps of `counts` rows after `behind` tokens, except the last count, which is a prompt by itself."""
    state, noise = prefix.new_state(), _noise(prefix, counts[-1])

    def step(rows: int) -> None:
        state.rollback(behind)
        state.extend(noise[:rows])

    _prefill(state, noise[:behind])
    for rows in counts[:-1]:
        yield rows, median_seconds(step, rows, budget=budget / len(counts))
    yield counts[-1], median_seconds(_prefill, state, noise, budget=budget / len(counts))


def _prefill(state: DecoderState, rows: Rows, last_only: bool = False) -> None:
    """Run a prompt as the agent does: a drafter's at once, for its last logits; a target's prefix in parts."""
    state.rollback(0)
    part = len(rows) if last_only else PREFILL
    for start in range(0, len(rows), part):
        state.extend(rows[start : start + part], last_only=last_only)


def _token_seconds(drafter: Drafter, behind: int) -> float:
    """Seconds for each token of a draft, with its sampling."""
    stops = drafter.manifest.stop_tokens
    token = next(token for token in range(drafter.manifest.decoder.vocabulary) if token not in stops)
    drafting = drafter.converse([token] * behind, (), Sampling())
    answer: list[int] = []
    times: list[float] = []
    room = drafter.manifest.decoder.context - behind - 1
    together = max(1, min(TOGETHER, room // 2))
    for _ in range(min(TOKENS, room) // together):
        began = time.perf_counter()
        for _ in range(together):
            answer.append(token)  # not the drafted one, as every token costs the same
            next(drafting.draft(answer, 1))
        times.append((time.perf_counter() - began) / together)
    return significant(statistics.median(times[1:]))


def _noise(decoder: Decoder, rows: int) -> Rows:
    return np.random.default_rng(0).standard_normal((rows, decoder.rows_width), np.float32)
