"""Frames that do not show a text are left out, and the threshold misses no more than it promises."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binom

from cutline.edge.inference.encoder import Encoder
from cutline.edge.watch.frames import Frame
from cutline.edge.watch.scene_filter import (
    FilteredSource,
    Scene,
    calibrate_scene,
    open_scene,
    save_threshold,
    thresholds_of,
)
from cutline.errors import BundleError, InputError
from cutline.models.encoders.bundle import EncoderBundle
from cutline.models.images import as_png

Made = Callable[[str], tuple[Path, EncoderBundle]]

TEXT = "a person at the gate"
PICTURES = [as_png(Image.linear_gradient("L").rotate(angle).convert("RGB")) for angle in range(0, 360, 30)]


@pytest.fixture(scope="module", params=["clip", "siglip"])
def encoder(request: pytest.FixtureRequest, encoders: Made, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """One whose bundle may be written to."""
    copy = tmp_path_factory.mktemp("copy") / request.param
    shutil.copytree(encoders(request.param)[1].path, copy)
    return Encoder(copy, threads=1)


class Listed:
    """A source of given images."""

    name = "photos/"
    live = False
    unreadable, still, filtered = 2, 3, 0

    def __init__(self, images: list[bytes]) -> None:
        self._images = images

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        for number, image in enumerate(self._images, 1):
            yield Frame(id=str(number), source=self.name, number=number, taken=0.0, image=image)


@pytest.mark.parametrize(("count", "risk"), [(45, 0.05), (60, 0.05), (200, 0.1)])
def test_few_that_show_it_are_missed(count: int, risk: float) -> None:
    """Of scores between 0 and 1 a threshold misses as large a share as it is: it may exceed the risk in a tenth."""
    rng = np.random.default_rng(7)
    found = [
        calibrate_scene(rng.uniform(size=count).tolist(), [], risk=risk, confidence=0.9).threshold for _ in range(2000)
    ]
    over = sum(threshold > risk for threshold in found)
    assert binom.sf(over - 1, len(found), 0.1) > 1e-4  # so many are no accident if the promise holds
    assert np.mean(found) > risk / 5  # and it leaves something out


def test_a_threshold_says_what_it_did() -> None:
    shown, others = [score / 100 for score in range(100)], [0.01, 0.015, 0.5]
    found = calibrate_scene(shown, others, risk=0.05, confidence=0.9)
    assert (found.shown, found.others) == (100, 3)
    assert found.missed == sum(score < found.threshold for score in shown)
    assert binom.cdf(found.missed, 100, 0.05) <= 0.1 < binom.cdf(found.missed + 1, 100, 0.05)
    assert found.left_out == sum(score < found.threshold for score in others)
    assert calibrate_scene([0.5] * 100, [0.4], risk=0.05, confidence=0.9).missed == 0


def test_too_few_frames_promise_nothing_and_it_says_how_many_would() -> None:
    with pytest.raises(InputError, match=r"44 of the frames .* 5\.0% .* label 45 or more"):
        calibrate_scene([0.5] * 44, [], risk=0.05, confidence=0.9)
    assert calibrate_scene([0.5] * 45, [], risk=0.05, confidence=0.9).threshold == 0.5
    with pytest.raises(InputError, match="0 of the frames"):
        calibrate_scene([], [0.1], risk=0.05, confidence=0.9)


def test_only_frames_come_that_show_it(encoder: Encoder) -> None:
    scene = Scene(encoder, TEXT, above=0.0)
    scores = [scene.score(picture) for picture in PICTURES]
    assert len(set(scores)) > 6
    middle = sorted(scores)[6]
    told: list[str] = []
    source = FilteredSource(Listed([*PICTURES, b"no image"]), Scene(encoder, TEXT, above=middle), notify=told.append)
    numbers = [frame.number for frame in source.frames(threading.Event())]
    assert numbers == [number for number, score in enumerate(scores, 1) if score >= middle] + [13]
    assert source.filtered == len(PICTURES) + 1 - len(numbers)
    assert (source.name, source.live, source.unreadable, source.still) == ("photos/", False, 2, 3)
    assert told == [f"photos/: 1 frame left out so far that did not show '{TEXT}'"]


def test_a_score_is_what_the_encoder_is_made_for(encoder: Encoder) -> None:
    """A SigLIP's own probability; of a CLIP, whose text alone is always certain, the cosine."""
    score = Scene(encoder, TEXT, above=0.0).score(PICTURES[0])
    rows, text = encoder.embed_images(PICTURES[:1]), encoder.embed_texts([TEXT])
    alone = encoder.manifest.scores.kind == "sigmoid"
    assert score == pytest.approx(
        float(encoder.classify(PICTURES[:1], [TEXT])[0, 0] if alone else (rows @ text.T)[0, 0])
    )
    assert -1.0 <= score <= 1.0


def test_thresholds_stay_in_the_bundle(encoder: Encoder) -> None:
    with pytest.raises(InputError, match=r"not calibrated for 'a cat'.*--above"):
        open_scene(encoder, "a cat", None)
    found = calibrate_scene([0.2] * 50, [], risk=0.05, confidence=0.9)
    save_threshold(encoder.bundle, "a cat", found)
    again = EncoderBundle.open(encoder.bundle.path)
    save_threshold(again, TEXT, calibrate_scene([0.3] * 50, [], risk=0.05, confidence=0.9))
    last = Encoder(encoder.bundle.path, threads=1)
    assert thresholds_of(last.manifest)["a cat"] == found
    assert last.manifest.identity == encoder.manifest.identity
    assert open_scene(last, TEXT, None).above == 0.3
    assert open_scene(last, TEXT, 0.7).above == 0.7
    with pytest.raises(InputError, match="calibrated are 'a cat', 'a person at the gate'"):
        open_scene(last, "a dog", None)
    broken = last.bundle.with_calibration({"scenes": 3})
    with pytest.raises(BundleError, match=r"calibration .* does not read"):
        thresholds_of(broken.manifest)
