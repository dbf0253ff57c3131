"""What decoding a video is told and what comes of it, as messages between the agent and the process that decodes."""

from __future__ import annotations

from typing import Any

import msgspec

from cutline.models.families import family_from
from cutline.models.video import Footage, spread

MAX_FRAMES = 20_000  # of a video that is sampled: eleven minutes at 30 a second
FRAME_SECONDS = 1.0  # between two frames of a video, for models that look at them as at images ...
FEW_FRAMES = 8  # ... and how many at most: each takes as much of the context as an image


class DecodeOrder(msgspec.Struct, frozen=True, kw_only=True):
    """The models' family, as its fields in a manifest, and how many frames there may be at `most`."""

    family: dict[str, Any]
    most: int

    def sample(self, footage: Footage) -> tuple[int, ...]:
        """The frames to look at: as the family does, if it has a mode for videos, else evenly spread."""
        mode = family_from(self.family).video
        if mode is not None:
            return mode.sample(footage, self.most)
        count = max(1, round(footage.seconds / FRAME_SECONDS))
        return spread(footage.frames, min(count, FEW_FRAMES, self.most))


class SampledVideo(msgspec.Struct, frozen=True, kw_only=True):
    """Frames of a video as image files, when they were taken, how long it is and how many frames it has."""

    frames: tuple[bytes, ...]
    times: tuple[float, ...]
    seconds: float
    total: int


class DecodeFailure(msgspec.Struct, frozen=True):
    """Why there are no frames."""

    why: str


class DecodeResult(msgspec.Struct, frozen=True):
    """One of the two."""

    video: SampledVideo | None = None
    failure: DecodeFailure | None = None
