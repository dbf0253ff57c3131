from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw

from cutline.edge.watch.change_detection import DEFAULT_THRESHOLD, HEIGHT, WIDTH, Changes, difference, thumbnail

thumbnails = arrays(np.uint8, (HEIGHT, WIDTH))


def room(*, noise: int = 0, person: bool = False, light: int = 0) -> Image.Image:
    """A still room, as a sensor sees it."""
    rng = np.random.default_rng(noise)
    wall = np.tile(np.linspace(60, 160, 640), (480, 1)) + light
    picture = Image.fromarray(np.clip(wall + rng.normal(0, 6, wall.shape), 0, 255).astype(np.uint8)).convert("RGB")
    if person:
        ImageDraw.Draw(picture).rectangle((300, 150, 370, 450), fill=(20, 20, 30))
    return picture


@given(thumbnails, thumbnails)
def test_the_difference_is_the_mean_of_absolute_ones(first: np.ndarray, second: np.ndarray) -> None:
    by_hand = sum(abs(int(a) - int(b)) for a, b in zip(first.flat, second.flat, strict=True)) / first.size / 255
    assert abs(difference(first, second) - by_hand) < 1e-9
    assert difference(first, second) == difference(second, first)


def test_black_and_white_are_as_far_apart_as_can_be() -> None:
    black, white = (thumbnail(Image.new("RGB", (640, 480), colour)) for colour in ("black", "white"))
    assert black.shape == (HEIGHT, WIDTH)
    assert difference(black, white) == 1.0


def test_a_sensors_noise_is_no_change_and_a_person_is() -> None:
    changes = Changes()
    assert changes.passes(thumbnail(room(noise=1)))
    assert not any(changes.passes(thumbnail(room(noise=seed))) for seed in range(2, 12))
    assert changes.still == 10
    assert changes.passes(thumbnail(room(noise=20, person=True)))
    assert not changes.passes(thumbnail(room(noise=21, person=True)))
    assert changes.passes(thumbnail(room(noise=22)))
    assert changes.still == 11


def test_small_steps_add_up() -> None:
    """Each frame is compared with the last that passed, not with the one before it."""
    changes = Changes(10 / 255)
    passed = [changes.passes(np.full((HEIGHT, WIDTH), level, np.uint8)) for level in range(0, 40, 4)]
    assert passed == [True, False, False, True, False, False, True, False, False, True]


def test_the_threshold_itself_passes() -> None:
    changes = Changes(0.2)
    assert changes.passes(np.zeros((HEIGHT, WIDTH), np.uint8))
    assert not changes.passes(np.full((HEIGHT, WIDTH), 50, np.uint8))
    assert changes.passes(np.full((HEIGHT, WIDTH), 51, np.uint8))
    assert 0 < DEFAULT_THRESHOLD < 0.1
