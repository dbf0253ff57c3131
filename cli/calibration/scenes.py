"""`cutline calibrate --encoder`: from which score on a frame shows what a text says."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cutline.cli.calibration.inputs import errors_at, whole_lines
from cutline.core.json_errors import UNREADABLE
from cutline.errors import InputError
from cutline.evaluation.questions import image_at
from cutline.models.images import read_image_file

if TYPE_CHECKING:
    from rich.console import Console

    from cutline.edge.inference.encoder import Encoder
    from cutline.edge.watch.scene_filter import SceneThreshold


class SceneLine(msgspec.Struct):
    """A line of a file of labelled frames."""

    image: str
    shows: bool


def calibrate_frames(
    encoder: Encoder, text: str, data: Path, *, risk: float, confidence: float, console: Console
) -> SceneThreshold:
    """Score the frames of a file, and write the text's threshold into the encoder's bundle.

    Raises InputError, BundleError, StorageError.
    """
    from cutline.cli.terminal.time_left import TimeLeft
    from cutline.edge.watch.scene_filter import Scene, calibrate_scene, save_threshold

    scene = Scene(encoder, text, above=0.0)
    lines = list(labelled_frames(data))
    scores: dict[bool, list[float]] = {True: [], False: []}
    with TimeLeft(console) as progress:
        track = progress.add_task("comparing frames", total=len(lines))
        for place, path, shows in lines:
            with errors_at(place):
                scores[shows].append(scene.score(read_image_file(path)))
            progress.advance(track)
    found = calibrate_scene(scores[True], scores[False], risk=risk, confidence=confidence)
    save_threshold(encoder.bundle, text, found)
    return found


def labelled_frames(data: Path) -> Iterator[tuple[str, Path, bool]]:
    """Where each frame of a file stands, its image, and whether it shows the text. Raises InputError."""
    for place, line in whole_lines(data):
        try:
            said = msgspec.json.decode(line, type=SceneLine)
        except UNREADABLE as error:
            raise InputError(f'{place} is not {{"image": FILE, "shows": true}}: {error}') from None
        with errors_at(place):
            image = image_at(said.image, data.parent)
        yield place, image, said.shows


def show_threshold(text: str, found: SceneThreshold, *, as_json: bool, console: Console) -> None:
    """Print what the calibration found."""
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode({"text": text} | msgspec.to_builtins(found)) + b"\n")
        return
    console.print(
        f"{text!r}: frames from a score of {found.threshold:.4f} on are asked about. It leaves out {found.missed} of "
        f"{found.shown} that show it (promised: {found.risk:.1%} at most), and {found.left_out} of {found.others} "
        "others.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
