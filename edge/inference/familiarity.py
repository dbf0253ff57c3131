"""How far a picture is from those that a calibration asked about, by what the drafter's own tower makes of it.

A picture's rows after the tower are averaged to one. Of half of the calibration's pictures a Gaussian is fitted whose
covariance is full in a few directions, those of most variance, and the same in all others (Tipping and Bishop 1999,
"Probabilistic principal component analysis"). The distance is Mahalanobis's under it, as in Lee et al. 2018, "A simple
unified framework for detecting out-of-distribution samples". The other half says how far is far: a picture is
unfamiliar where its conformal p-value, the share of those that lie as far or farther, itself among them, is `alarm` at
most (Vovk et al. 2005; Bates et al. 2023, "Testing for outliers with conformal p-values"). Of pictures like the
calibration's that is so for a share `alarm` at most, exactly, whatever their distribution is.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

DIRECTIONS = 16
LEAST = 1e-3  # of the mean variance: no direction counts as narrower
ALARM = 0.02

Row = NDArray[np.float32]


def averaged(rows: NDArray[np.float32]) -> Row:
    """A picture's rows (n, width) after the tower, averaged to one."""
    return np.asarray(rows.mean(0, dtype=np.float64), np.float32)


class Familiarity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The pictures of a calibration: their `mean` (width,) and `directions` (n, width), as float32 in their bytes.

    `variances` are those along the directions, `rest` that of all others. `distances` are those of the pictures that
    none of it was fitted to, in rising order; `alarm` is the share of familiar pictures that may be taken for others.
    """

    mean: bytes
    directions: bytes
    variances: tuple[Annotated[float, msgspec.Meta(gt=0.0)], ...]
    rest: Annotated[float, msgspec.Meta(gt=0.0)]
    distances: tuple[float, ...]
    alarm: Annotated[float, msgspec.Meta(gt=0.0, lt=1.0)]

    def __post_init__(self) -> None:
        if len(self.mean) % 4 or len(self.directions) != len(self.mean) * len(self.variances):
            raise ValueError("its directions are of another width than its mean")

    def distance(self, row: Row) -> float:
        """The squared distance of a picture's averaged row (width,). Raises ValueError for one of another width."""
        mean = np.frombuffer(self.mean, "<f4")
        if row.shape != mean.shape:
            raise ValueError(f"a row of {mean.shape} was expected, and not {row.shape}")
        off = row.astype(np.float64) - mean
        along = np.frombuffer(self.directions, "<f4").reshape(-1, len(mean)) @ off
        beside = max(0.0, float(off @ off - along @ along))
        return float((along**2 / np.array(self.variances)).sum()) + beside / self.rest

    def p_value(self, row: Row) -> float:
        """The share of pictures that lie as far or farther, itself among them."""
        farther = len(self.distances) - bisect_left(self.distances, self.distance(row))
        return (1 + farther) / (1 + len(self.distances))

    def is_unfamiliar(self, rows: Sequence[Row]) -> bool:
        """Whether any of a question's pictures is: of several each has its part of the `alarm`."""
        return any(self.p_value(row) <= self.alarm / len(rows) for row in rows)


def fewest_pictures(alarm: float) -> int:
    """How many pictures a calibration needs, so that any could be far enough."""
    return 2 * math.ceil(1.0 / alarm - 1.0)


def familiarity_of(rows: NDArray[np.float32], *, alarm: float = ALARM, seed: int = 0) -> Familiarity | None:
    """What pictures with these averaged rows (n, width) are like; None if they are fewer than `fewest_pictures`."""
    if len(rows) < fewest_pictures(alarm):
        return None
    order = np.random.default_rng(seed).permutation(len(rows))
    every = rows.astype(np.float64)[order]
    fitted, held = every[: len(every) // 2], every[len(every) // 2 :]
    mean = fitted.mean(0).astype("<f4")
    _, values, directions = np.linalg.svd(fitted - mean, full_matrices=False)
    variances, width = values**2 / (len(fitted) - 1), len(mean)
    count = min(DIRECTIONS, len(variances), width)
    least = max(LEAST * float(variances.sum()) / width, float(np.finfo(np.float32).tiny))
    rest = float(variances[count:].sum()) / (width - count) if width > count else 0.0
    found = Familiarity(
        mean=mean.tobytes(),
        directions=directions[:count].astype("<f4").tobytes(),
        variances=tuple(np.maximum(variances[:count], least).tolist()),
        rest=max(rest, least),
        distances=(),
        alarm=alarm,
    )
    distances = sorted(found.distance(row.astype(np.float32)) for row in held)
    return msgspec.structs.replace(found, distances=tuple(distances))
