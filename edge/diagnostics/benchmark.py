"""Measuring a model on this device: seconds of each layer on ONNX Runtime, of drafting, and of preparing an image.

A span's graph runs as a whole, so a layer's seconds are the difference between two spans of which one ends a layer
later. Times jitter and differences of them more: the times of longer and longer spans are first made to rise
(`rising`), so that no layer takes less than nothing and every span's layers still add up to what the span took.
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
from cutline.models.bundle import Bundle, DecoderSpec, Manifest
from cutline.models.images import decode_image

TOKENS, TOGETHER = 64, 8  # drafted one by one, and so many timed at once
_SPANS = 9  # measured at most in the tower, and in the decoder: the layers between two of them are alike

Tell = Callable[[str], None]  # hears what is being measured
Times = dict[str, float]  # seconds of the spans [start, cut), by cut


def target_table(bundle: Bundle, *, threads: int, seconds: float, provider: str = CPU, tell: Tell) -> LayerTable:
    """Measure the layers of a target's bundle that its graphs run on a device, in about `seconds` and the loading.

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
        tell(f"target, image to {cut}")
        span = VisionSpan.open(bundle, cut, threads=threads, provider=provider)
        _note(towers, cut, median_seconds(span, tile.values, [tile.grid], budget=budget))
    layers = {name: ((patches, taken),) for name, taken in _by_layer(manifest, "image", towers)}

    counts, behind = row_counts(manifest.decoder.context)
    prefixes: dict[int, Times] = {rows: {} for rows in counts}
    for cut in _there_and_back(deep):
        tell(f"target, decoder.0 to {cut}")
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


def drafter_table(bundle: Bundle, *, threads: int, seconds: float, provider: str = CPU, tell: Tell) -> DrafterTable:
    """Measure a drafter's bundle in about `seconds` and the loading. Raises InputError, BundleError."""
    manifest = bundle.manifest
    tell("drafter")
    tower = VisionSpan.open(bundle, "decoder.0", threads=threads, provider=provider)
    decoder = Decoder.open(bundle, threads=threads, provider=provider)
    tile = one_tile(manifest)
    counts, behind = row_counts(manifest.decoder.context)
    state, noise = decoder.new_state(), _noise(decoder.spec, counts[-1])
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
    """The rising sequence nearest to `times` in the sum of squares (pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []  # (mean, how many)
    for one in times:
        mean, count = one, 1
        while blocks and blocks[-1][0] > mean:
            other, more = blocks.pop()
            mean, count = (mean * count + other * more) / (count + more), count + more
        blocks.append((mean, count))
    return [mean for mean, count in blocks for _ in range(count)]


def _by_layer(manifest: Manifest, start: str, times: Times) -> Iterator[tuple[str, float]]:
    """Each layer's seconds from those of spans that begin at `start`, their cuts in order.

    Layers between two spans share the difference: what lies between is alike.
    """
    line = manifest.line
    first, before = line.place(start), 0.0
    for cut, taken in zip(times, rising(list(times.values())), strict=True):
        names = line.layers[first : line.place(cut)]
        yield from ((name, significant((taken - before) / len(names))) for name in names)
        first, before = line.place(cut), taken


def _there_and_back(cuts: Sequence[str]) -> list[str]:
    """Each cut twice, far apart: what else the machine did at one time, it may not do at the other."""
    return [*cuts, *reversed(cuts)]


def _note(times: Times, cut: str, taken: float) -> None:
    """Keep the better of the two times: the machine's own speed is wanted, not its neighbours'."""
    times[cut] = min(taken, times.get(cut, taken))


def _some(cuts: Sequence[str]) -> list[str]:
    """The first two, the last two, and some between, evenly; all where they are few."""
    if len(cuts) <= _SPANS:
        return list(cuts)
    between = np.linspace(1, len(cuts) - 2, _SPANS - 2).round().astype(int)
    return [cuts[0], *(cuts[index] for index in between), cuts[-1]]


def _timed(prefix: Decoder, counts: Sequence[int], behind: int, budget: float) -> Iterator[tuple[int, float]]:
    """Seconds of steps of so many rows behind `behind` others, and of the last count as a prompt on its own."""
    state, noise = prefix.new_state(), _noise(prefix.spec, counts[-1])

    def step(rows: int) -> None:
        state.rollback(behind)
        state.extend(noise[:rows])

    _prefill(state, noise[:behind])
    for rows in counts[:-1]:
        yield rows, median_seconds(step, rows, budget=budget / len(counts))
    yield counts[-1], median_seconds(_prefill, state, noise, budget=budget / len(counts))


def _prefill(state: DecoderState, rows: Rows, last_only: bool = False) -> None:
    """Run a prompt as the agent does: a drafter's at once, wanting its last logits; a target's prefix in parts."""
    state.rollback(0)
    part = len(rows) if last_only else PREFILL
    for start in range(0, len(rows), part):
        state.extend(rows[start : start + part], last_only=last_only)


def _token_seconds(drafter: Drafter, behind: int) -> float:
    """Seconds for each token of a draft, its choice included."""
    token = next(one for one in range(drafter.manifest.decoder.vocabulary) if one not in drafter.manifest.stop_tokens)
    drafting = drafter.converse([token] * behind, (), Sampling())
    answer: list[int] = []
    times: list[float] = []
    room = drafter.manifest.decoder.context - behind - 1
    together = max(1, min(TOGETHER, room // 2))
    for _ in range(min(TOKENS, room) // together):
        began = time.perf_counter()
        for _ in range(together):
            answer.append(token)  # whatever was drafted: every token costs the same
            next(drafting.draft(answer, 1))
        times.append((time.perf_counter() - began) / together)
    return significant(statistics.median(times[1:]))


def _noise(spec: DecoderSpec, rows: int) -> Rows:
    return np.random.default_rng(0).standard_normal((rows, spec.width), np.float32)
