"""What a camera's message holds becomes the picture that it shows, and what is no such message is refused."""

from __future__ import annotations

import io
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cutline
from cutline_ros.pictures import RawPicture

SEEN = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)  # rows, columns; red, green, blue
ALPHA = np.full((5, 7, 1), 9, np.uint8)
CHANNELS = {
    "rgb8": SEEN,
    "bgr8": SEEN[:, :, ::-1],
    "rgba8": np.concatenate([SEEN, ALPHA], axis=2),
    "bgra8": np.concatenate([SEEN[:, :, ::-1], ALPHA], axis=2),
    "mono8": SEEN[:, :, :1],
}


def raw(encoding: str, padding: int, more: Mapping[str, Any] = MappingProxyType({})) -> RawPicture:
    rows = CHANNELS[encoding].reshape(5, -1)
    padded = np.concatenate([rows, np.full((5, padding), 7, np.uint8)], axis=1)
    given: dict[str, Any] = {"width": 7, "height": 5, "encoding": encoding, "step": padded.shape[1]}
    return RawPicture(**given | {"data": memoryview(padded.tobytes())} | dict(more))


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("encoding", CHANNELS)
def test_a_picture_is_what_the_camera_saw(encoding: str, padding: int) -> None:
    with Image.open(io.BytesIO(raw(encoding, padding).file(0))) as read:
        assert read.format == "PNG"
        expected = SEEN[:, :, 0] if encoding == "mono8" else SEEN
        assert (np.asarray(read) == expected).all()
    with Image.open(io.BytesIO(raw(encoding, padding).file(95))) as read:
        assert read.format == "JPEG"
        assert read.size == (7, 5)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"encoding": "mono16"}, "'mono16' are not taken"),
        ({"encoding": "bayer_rggb8"}, "have the camera give one of mono8, rgb8"),
        ({"encoding": "yuv422"}, "not taken"),
        ({"step": 20}, "broken"),
        ({"height": 4}, "broken"),
        ({"width": 0}, "broken"),
        ({"data": b""}, "broken"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(more: dict[str, Any], said: str) -> None:
    with pytest.raises(cutline.ImageError, match=said):
        raw("rgb8", 0, more).file(0)
