"""Token merging: averages an image's most similar rows, so that fewer cross a cut and enter the decoder.

It is bipartite soft matching (Bolya et al., "Token Merging: Your ViT But Faster", 2023): each even row may merge into
the most similar odd row, the most similar pairs do, and a merged row is the mean of its original rows. The paper merges
between a tower's layers, by the similarity of attention keys; here it is done once, after the connector, by rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]  # (n, width)


def kept_of(count: int, share: float) -> int:
    """How many of `count` rows remain for a `share` in (0, 1]."""
    return math.ceil(count * share)


def shorten(prompt: Sequence[int], image_token: int, share: float) -> tuple[int, ...]:
    """`prompt` with every run of image tokens shortened to the number of rows after `merge_runs`."""
    short: list[int] = []
    for token, run in groupby(prompt):
        count = sum(1 for _ in run)
        short += [token] * (kept_of(count, share) if token == image_token else count)
    return tuple(short)


def merge_runs(rows: Rows, prompt: Sequence[int], image_token: int, share: float) -> Rows:
    """The rows (n, width) of the image tokens in `prompt`, with each run merged separately to a `share` of its rows."""
    parts, first = [rows[:0]], 0
    for count in _runs(prompt, image_token):
        parts.append(merge(rows[first : first + count], kept_of(count, share))[0])
        first += count
    return np.concatenate(parts)


def parts_of(prompt: Sequence[int], image_token: int, counts: Sequence[int]) -> list[Sequence[int]]:
    """The part of a prompt from the first to the last token of each image; `counts` are their numbers of tokens."""
    indices = [index for index, token in enumerate(prompt) if token == image_token]
    ends = list(accumulate(counts))
    return [prompt[indices[end - count] : indices[end - 1] + 1] for end, count in zip(ends, counts, strict=True)]


def merge(rows: Rows, count: int) -> tuple[Rows, NDArray[np.int64]]:
    """Merge `rows` (n, width) to `count` (1 to n) in the same order; returns them and how many rows each averages.

    It is deterministic: of equally similar pairs the first is merged.
    """
    sizes = np.ones(len(rows), np.int64)
    while len(rows) > count:
        rows, sizes = _merge_once(rows, sizes, len(rows) - count)
    return rows, sizes


def _merge_once(rows: Rows, sizes: NDArray[np.int64], surplus: int) -> tuple[Rows, NDArray[np.int64]]:
    """Merge at most `surplus` of the even rows into odd rows, as far as there are odd rows."""
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    similarity = unit[0::2] @ unit[1::2].T  # (even, odd)
    nearest = similarity.argmax(1)
    joining = np.argsort(-similarity.max(1), kind="stable")[: min(surplus, len(nearest))]
    sums = rows.astype(np.float64) * sizes[:, None]
    totals = sizes.copy()
    into = 2 * nearest[joining] + 1
    np.add.at(sums, into, sums[2 * joining])
    np.add.at(totals, into, totals[2 * joining])
    left = np.delete(np.arange(len(rows)), 2 * joining)
    return (sums[left] / totals[left, None]).astype(np.float32), totals[left]


def _runs(prompt: Sequence[int], image_token: int) -> Iterator[int]:
    """Lengths of the runs of image tokens."""
    for token, run in groupby(prompt):
        if token == image_token:
            yield sum(1 for _ in run)
