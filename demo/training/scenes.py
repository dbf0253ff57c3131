"""Pictures for conversations: cards, cards with distractors, and pictures that are no cards at all.

Photographs are crops of those that scikit-image and scikit-learn bring; those of `HELD_BACK` are for evaluation only.
The others are drawn: a blank card, gradients, noise as rough as a photograph's, shapes, letters.
"""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from cutline.demo import cards
from cutline.demo.cards import CARD, EMPTY, Card, Split

PHOTOGRAPHS = [
    "astronaut.png",
    "brick.png",
    "camera.png",
    "cell.png",
    "clock_motion.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "page.png",
    "retina.jpg",
    "text.png",
]
HELD_BACK = ["chelsea.png", "coffee.png", "horse.png", "rocket.jpg"]
_LETTERS = "AEFHKMNRTUVWXY"  # those that no digit looks like
_GREYEST, _LIGHTEST = 60, 235  # of a distractor's paint


class Kind(enum.Enum):
    """What a picture is."""

    CARD = "card"
    DISTRACTED = "card with distractors"
    BLANK = "blank card"
    STRANGE = "no card"


@dataclass(frozen=True, slots=True)
class Scenes:
    """Pictures, (n, 64, 64, 3) uint8, what each is, and the digits on it as `cards.Batch` has them."""

    batch: cards.Batch
    kinds: tuple[Kind, ...]

    def card(self, index: int) -> Card:
        """The picture at `index` with its digits; none where it is no card."""
        return self.batch.card(index)


def draw(kinds: tuple[Kind, ...], split: Split, rng: np.random.Generator, *, augment: bool = False) -> Scenes:
    """A picture of each of `kinds`, digits from the scans of `split`; photographs held back but for training."""
    batch = cards.draw(split, len(kinds), rng, augment=augment)
    pixels, values, colours = batch.pixels.copy(), batch.values.copy(), batch.colours.copy()
    for index, kind in enumerate(kinds):
        match kind:
            case Kind.DISTRACTED:
                pixels[index] = _distracted(pixels[index], values[index] == EMPTY, rng)
            case Kind.BLANK | Kind.STRANGE:
                values[index] = colours[index] = EMPTY
                if kind is Kind.STRANGE:
                    pixels[index] = strange(rng, held_back=split is not Split.TRAIN)
                else:
                    pixels[index] = _ground(rng)
                    if rng.random() < 0.3:  # a card of distractors alone is blank, too
                        pixels[index] = _distracted(pixels[index], np.ones(4, bool), rng)
    return Scenes(cards.Batch(pixels, values, colours), kinds)


def strange(rng: np.random.Generator, *, held_back: bool) -> NDArray[np.uint8]:
    """A picture (64, 64, 3) that is no card."""
    if rng.random() < 0.5:
        return photograph(rng, held_back=held_back)
    return (_gradient, _rough, _shapes, _letters)[rng.integers(4)](rng)


def photograph(rng: np.random.Generator, *, held_back: bool) -> NDArray[np.uint8]:
    """A crop of a photograph, mirrored, brighter or darker, its colours turned."""
    pictures = _photographs(tuple(HELD_BACK if held_back else PHOTOGRAPHS))
    whole = pictures[rng.integers(len(pictures))]
    side = int(min(whole.shape[:2]) * rng.uniform(0.25, 1.0))
    top, left = (int(rng.integers(0, length - side + 1)) for length in whole.shape[:2])
    crop = Image.fromarray(whole[top : top + side, left : left + side]).resize((CARD, CARD), Image.Resampling.BILINEAR)
    values = np.asarray(crop, np.float32)[:, :: rng.choice([-1, 1])]
    if rng.random() < 0.5:
        values = values[..., rng.permutation(3)]
    values = (values - 128) * rng.uniform(0.5, 1.2) + 128 + rng.uniform(-50, 50)
    return _picture(values)


@functools.cache
def _photographs(names: tuple[str, ...]) -> list[NDArray[np.uint8]]:
    folder = resources.files("skimage") / "data"
    found = []
    for name in names:
        with (folder / name).open("rb") as file, Image.open(file, formats=["JPEG", "PNG"]) as picture:
            picture.thumbnail((320, 320))
            found.append(np.asarray(picture.convert("RGB")))
    return found


def _ground(rng: np.random.Generator) -> NDArray[np.uint8]:
    """A card's background without digits."""
    shade = rng.uniform(15, 55, size=3) + rng.normal(0, 9, size=(CARD, CARD, 3))
    return _picture(shade)


def _distracted(pixels: NDArray[np.uint8], empty: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The card with letters and shapes in some of its `empty` quadrants, and specks and lines anywhere."""
    picture = Image.fromarray(pixels)
    pen = ImageDraw.Draw(picture)
    for quadrant in np.flatnonzero(empty):
        if rng.random() < 0.6:
            row, column = (int(corner + rng.integers(3, 9)) for corner in np.array(divmod(int(quadrant), 2)) * 32)
            _mark(pen, (column, row), int(rng.integers(12, 21)), rng)
    for _ in range(rng.integers(0, 5)):
        x, y, width, height = (int(value) for value in (*rng.integers(0, CARD, 2), *rng.integers(0, 3, 2)))
        pen.ellipse((x, y, x + width, y + height), fill=_paint(rng))
    if rng.random() < 0.4:
        edge = int(rng.integers(0, 3))
        pen.rectangle((edge, edge, CARD - 1 - edge, CARD - 1 - edge), outline=_paint(rng))
    return np.asarray(picture)


def _mark(pen: ImageDraw.ImageDraw, at: tuple[int, int], size: int, rng: np.random.Generator) -> None:
    """A letter, a square, a triangle or a cross, that no digit looks like."""
    x, y = at
    box = (x, y, x + size, y + size)
    match rng.integers(4):
        case 0:
            letter = _LETTERS[rng.integers(len(_LETTERS))]
            pen.text(at, letter, fill=_paint(rng), font=ImageFont.load_default(size + 6))
        case 1:
            pen.rectangle(box, fill=_paint(rng))
        case 2:
            pen.polygon([(x, y + size), (x + size // 2, y), (x + size, y + size)], fill=_paint(rng))
        case _:
            paint, width = _paint(rng), int(rng.integers(2, 5))
            pen.line(box, fill=paint, width=width)
            pen.line((x, y + size, x + size, y), fill=paint, width=width)


def _paint(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in rng.integers(_GREYEST, _LIGHTEST, 3))
    return red, green, blue


def _gradient(rng: np.random.Generator) -> NDArray[np.uint8]:
    """From one colour to another, in a direction; often the same colour, which makes a plain picture."""
    ends = rng.uniform(0, 255, (2, 3))
    if rng.random() < 0.3:
        ends[1] = ends[0]
    rows, columns = np.mgrid[0:1:64j, 0:1:64j]
    share = rows * rng.random() + columns * rng.random()
    values = ends[0] + (share / max(share.max(), 1e-3))[..., None] * (ends[1] - ends[0])
    return _picture(values + rng.normal(0, rng.uniform(0, 10), (CARD, CARD, 3)))


def _rough(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Noise whose spectrum falls as a photograph's does, or less."""
    frequencies = np.hypot(np.fft.fftfreq(CARD)[:, None], np.fft.rfftfreq(CARD)[None])
    frequencies[0, 0] = 1
    noise = np.fft.rfft2(rng.normal(size=(3, CARD, CARD))) / frequencies ** rng.uniform(0, 1.6)
    waves = np.fft.irfft2(noise, (CARD, CARD)).transpose(1, 2, 0)
    waves = (waves - waves.mean()) / (waves.std() + 1e-6)
    return _picture(rng.uniform(60, 190) + waves * rng.uniform(20, 70))


def _shapes(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Some shapes on a bright or plain ground."""
    picture = Image.fromarray(_gradient(rng))
    pen = ImageDraw.Draw(picture)
    for _ in range(rng.integers(2, 9)):
        x, y = (int(value) for value in rng.integers(-8, CARD - 8, 2))
        _mark(pen, (x, y), int(rng.integers(6, 40)), rng)
    return np.asarray(picture)


def _letters(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Lines of letters, as a page or a sign has."""
    picture = Image.fromarray(_gradient(rng))
    pen = ImageDraw.Draw(picture)
    size, ink = int(rng.integers(7, 18)), _paint(rng)
    for top in range(int(rng.integers(0, 8)), CARD, size + 2):
        line = "".join(_LETTERS[index] for index in rng.integers(0, len(_LETTERS), 12))
        pen.text((int(rng.integers(0, 6)), top), line, fill=ink, font=ImageFont.load_default(size))
    return np.asarray(picture)


def _picture(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    picture: NDArray[np.uint8] = np.clip(values, 0, 255).astype(np.uint8)
    return picture
