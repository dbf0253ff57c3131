"""Leaves out frames that do not show what a text says, by a dual encoder, before a model is asked about them.

A frame's score is how likely a SigLIP holds the text; of a CLIP, for which one text alone is always certain, the cosine
between picture and text. The threshold is given, or calibrated on labelled frames so that few that show it are missed:
with so many below a threshold among those that show it, the share of all that are below is bounded by the binomial
tail, as the gate's is.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from cutline.core.agreement.shares import binomial_tail
from cutline.edge.inference.encoder import Encoder
from cutline.edge.watch.frames import Frame, FrameSource, Notify
from cutline.errors import BundleError, ImageError, InputError
from cutline.models.encoders.bundle import EncoderBundle, EncoderManifest


class SceneThreshold(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The least score at which a frame is asked about, and what was counted on the calibration's frames.

    Of those that show the text (`shown`) it leaves out `missed`: of all such frames the share `risk` at most, with so
    much `confidence`. Of the `others` it leaves out `left_out`.
    """

    threshold: float
    risk: float
    confidence: float
    shown: int
    missed: int
    others: int
    left_out: int


class SceneCalibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an encoder's bundle has of its calibrations: thresholds by text."""

    scenes: dict[str, SceneThreshold]


class Scene:
    """What frames are to show: a text, and from which score on a frame shows it."""

    def __init__(self, encoder: Encoder, text: str, above: float) -> None:
        """Raises PromptError, BundleError."""
        self.text = text
        self.above = above
        self._encoder = encoder
        self._row = encoder.embed_texts([text])

    def score(self, image: bytes) -> float:
        """How well an image file fits the text. Raises ImageError, BundleError."""
        rows = self._encoder.embed_images([image])
        alone = self._encoder.manifest.scores.kind == "sigmoid"
        return float((self._encoder.scores(rows, self._row) if alone else rows @ self._row.T)[0, 0])

    def shows(self, image: bytes) -> bool:
        """Whether to ask about an image: also one that does not read, for the answer says why. Raises BundleError."""
        try:
            return self.score(image) >= self.above
        except ImageError:
            return True


class FilteredSource:
    """A source of which only frames come that show the `scene`; `notify` hears how many were left out, now and then."""

    def __init__(self, source: FrameSource, scene: Scene, *, notify: Notify = lambda line: None) -> None:
        self.name = source.name
        self.live = source.live
        self.filtered = 0
        self._source = source
        self._scene = scene
        self._notify = notify

    @property
    def unreadable(self) -> int:
        """The number of images that exist and cannot be read."""
        return self._source.unreadable

    @property
    def still(self) -> int:
        """The number of images that were skipped because they showed no change."""
        return self._source.still

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """The source's frames that show the scene. Raises InputError, BundleError."""
        for frame in self._source.frames(stop):
            if self._scene.shows(frame.image):
                yield frame
            else:
                self.filtered += 1
                if math.log10(self.filtered).is_integer():
                    said = f"{self.filtered} frame{'s' if self.filtered > 1 else ''} left out"
                    self._notify(f"{self.name}: {said} so far that did not show {self._scene.text[:60]!r}")


def calibrate_scene(
    shown: Sequence[float], others: Sequence[float], *, risk: float, confidence: float
) -> SceneThreshold:
    """The highest threshold that leaves out at most the share `risk` of frames that show a text, with `confidence`.

    `shown` are the scores of frames that show it, `others` those of frames that do not. Raises InputError if there are
    too few to tell.
    """
    ordered = np.sort(np.asarray(shown, np.float64))
    missed = -1
    while missed + 1 < len(ordered) and binomial_tail(missed + 1, len(ordered), risk) <= 1 - confidence:
        missed += 1
    if missed < 0:
        least = math.ceil(math.log(1 - confidence) / math.log(1 - risk))
        raise InputError(
            f"{len(ordered)} of the frames show it, too few to promise that at most {risk:.1%} are missed; label "
            f"{least} or more that do, or promise less with --risk"
        )
    threshold = float(ordered[missed])
    return SceneThreshold(
        threshold=threshold,
        risk=risk,
        confidence=confidence,
        shown=len(ordered),
        missed=int((ordered < threshold).sum()),
        others=len(others),
        left_out=sum(score < threshold for score in others),
    )


def thresholds_of(manifest: EncoderManifest) -> dict[str, SceneThreshold]:
    """The calibrated thresholds of an encoder, by text. Raises BundleError."""
    if manifest.calibration is None:
        return {}
    try:
        return msgspec.convert(manifest.calibration, SceneCalibration).scenes
    except msgspec.ValidationError as error:
        raise BundleError(f"the calibration of {manifest.name} does not read ({error}); calibrate again") from None


def save_threshold(bundle: EncoderBundle, text: str, threshold: SceneThreshold) -> None:
    """Write a text's threshold into an encoder's bundle, beside those of other texts.

    Raises InputError if the bundle cannot be written, StorageError if the disk is full or fails.
    """
    scenes = thresholds_of(bundle.manifest) | {text: threshold}
    bundle.with_calibration(msgspec.to_builtins(SceneCalibration(scenes)))


def open_scene(encoder: Encoder, text: str, above: float | None) -> Scene:
    """The scene of a `text`, from the score `above` on; without one, from where its calibration says.

    Raises InputError, PromptError, BundleError.
    """
    if above is None:
        known = thresholds_of(encoder.manifest)
        if text not in known:
            there = f"; calibrated are {', '.join(map(repr, sorted(known)))}" if known else ""
            raise InputError(
                f"the encoder is not calibrated for {text[:60]!r}; run `cutline calibrate --encoder` with it as "
                f"--only-if, or give a threshold with --above{there}"
            )
        above = known[text].threshold
    return Scene(encoder, text, above)
