"""How often the memory of answers is right: `python -m cutline.bench.memory`.

Two kinds of a second look at a card: the same card again, as a camera would see it (other noise, a little brighter or
darker, a shift of half a pixel), and a card on which one quadrant has become another card's. Every question is asked of
the target about both looks. A hit is false where the target's answer to the second look is another one.
"""

from __future__ import annotations

import argparse
import io
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from cutline.demo.bundles import TARGET
from cutline.demo.cards import CARD, Split
from cutline.demo.reference import Reference
from cutline.demo.requests import CardRequest, requests
from cutline.edge.generation.semantic_cache import THRESHOLD, distance, miniatures
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image

THRESHOLDS = (0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1)
Pixels = NDArray[np.uint8]  # (side, side, 3)


@dataclass(frozen=True, slots=True)
class Look:
    """A second look: how far from the first, and whether the target answers the question as it did then."""

    distance: float
    alike: bool


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cards", type=int, default=100)
    args = parser.parse_args()
    console, rng = Console(width=120), np.random.default_rng(29)
    asked = list(requests(Split.EVALUATION, args.cards, seed=23))
    reference = Reference(Bundle.open(TARGET))
    again: list[Look] = []
    changed: list[Look] = []
    for index, one in enumerate(track(asked, console=console, transient=True)):
        truth = reference.answer(one.image, one.question.text)
        other = _pixels(asked[(index + len(asked) // 2) % len(asked)])
        for looks, seen in ((again, seen_again(_pixels(one), rng)), (changed, exchanged(_pixels(one), other, rng))):
            found = reference.answer(_png(seen), one.question.text)
            first, second = miniatures([Image.fromarray(_pixels(one)), Image.fromarray(seen)])
            looks.append(Look(distance(first, second), found == truth))
    table = Table(title=f"{len(asked)} questions about {args.cards} cards, asked again", title_justify="left")
    for heading in ("threshold", "same card: hits", "of them false", "changed card: hits", "of all looks false"):
        table.add_column(heading, justify="right")
    for threshold in THRESHOLDS:
        hits, wrong = ([one for one in looks if one.distance < threshold] for looks in (again, changed))
        table.add_row(
            f"{threshold:g}{' (used)' if threshold == THRESHOLD else ''}",
            f"{len(hits) / len(again):.1%}",
            f"{fmean(not one.alike for one in hits) if hits else 0:.1%}",
            f"{len(wrong) / len(changed):.1%}",
            f"{sum(not one.alike for one in wrong) / len(changed):.1%}",
        )
    console.print(table)
    console.print(f"the target's answer to a changed card is another one in {fmean(not o.alike for o in changed):.1%}")


def seen_again(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """The same scene by another frame of a camera: half a pixel aside, 2% brighter or darker, noise of 4 of 255."""
    shifted = (pixels.astype(np.float32) + np.roll(pixels, rng.choice([-1, 1]), axis=int(rng.integers(2)))) / 2
    seen = shifted * rng.uniform(0.98, 1.02) + rng.normal(0, 4, pixels.shape)
    return seen.clip(0, 255).round().astype(np.uint8)


def exchanged(pixels: Pixels, other: Pixels, rng: np.random.Generator) -> Pixels:
    """A card with one quadrant of another."""
    made, half = pixels.copy(), CARD // 2
    row, column = half * rng.integers(2, size=2)
    made[row : row + half, column : column + half] = other[row : row + half, column : column + half]
    return made


def _pixels(request: CardRequest) -> Pixels:
    return np.asarray(decode_image(request.image))


def _png(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    main()
