"""What pictures are familiar to a drafter: those that its calibration asks about."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cutline.cli.calibration.inputs import QuestionSource, errors_at
from cutline.core.request import Mode, Request
from cutline.edge.generation.preprocess import Preparer
from cutline.edge.inference.familiarity import Familiarity, Row, averaged, familiarity_of
from cutline.edge.inference.vision_encoder import VisionSpan
from cutline.errors import InputError
from cutline.models.bundle import Bundle
from cutline.models.prompt import PromptBuilder

MOST = 1000  # pictures; more change little


def check_alarm(alarm: float) -> None:
    """Check a share of familiar pictures that may be taken for others. Raises InputError."""
    if not 0.0 <= alarm < 1.0:
        raise InputError(f"--alarm is {alarm:g}; give a share from 0, which looks at no picture, to less than 1")


def familiar_pictures(
    drafter: Bundle, asked: Iterable[QuestionSource], *, alarm: float, threads: int
) -> Familiarity | None:
    """What the pictures of these questions are like, each once; None if they are too few, or `alarm` is 0.

    Raises InputError, BundleError.
    """
    if alarm == 0.0:
        return None
    tower = VisionSpan.open(drafter, "decoder.0", threads=threads)
    preparer = Preparer(drafter.manifest, PromptBuilder.open(drafter), None, planned=False, fresh=True)
    once = {source.picture: source for source in asked}
    rows = [_row(preparer, tower, one) for one in list(once.values())[:MOST]]
    return familiarity_of(np.array(rows, np.float32), alarm=alarm)


def _row(preparer: Preparer, tower: VisionSpan, source: QuestionSource) -> Row:
    """A picture's rows after the tower, averaged to one."""
    with errors_at(source.place):
        (pixels,) = preparer.prepare(Request.about(source.read(), source.text, mode=Mode.EDGE)).pixels
    return averaged(tower(pixels.values, [pixels.grid]))
