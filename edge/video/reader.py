"""Videos that come with a question, decoded by a process of their own."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Mapping
from typing import Any

import msgspec

from cutline.core.conversation import VideoPart
from cutline.core.request import MAX_IMAGE_BYTES
from cutline.core.tied import tied_command
from cutline.edge.video.child import CPU_SECONDS
from cutline.edge.video.sampled import DecodeOrder, DecodeResult, SampledVideo
from cutline.errors import ImageError
from cutline.models.families import Family

WALL_SECONDS = 30.0  # of decoding one video, also where others have the cores
AT_ONCE = 2  # videos that are decoded; the others wait
_MODULE = "cutline.edge.video.child"

_PLACES = threading.BoundedSemaphore(AT_ONCE)


def read_video(data: bytes, family: Family, *, most: int) -> SampledVideo:
    """The frames, `most` at most, at which models of a `family` look of a video in the bytes of a file.

    Takes a moment in a process of its own, and waits for that. Raises InputError where an extra is needed, ImageError.
    """
    if len(data) > MAX_IMAGE_BYTES:
        raise ImageError(f"the video is over {MAX_IMAGE_BYTES >> 20} MiB; send a shorter or smaller one")
    fields: Any = msgspec.to_builtins(family)
    order = msgspec.msgpack.encode(DecodeOrder(family=fields, most=most))
    told = len(order).to_bytes(4, "big") + order + data
    with _PLACES:
        result = _asked(told)
    if result.failure is not None:
        raise ImageError(result.failure.why)
    assert result.video is not None
    return result.video


def _asked(told: bytes) -> DecodeResult:
    """What the process answers. Raises ImageError."""
    command = tied_command(_MODULE)
    try:
        done = subprocess.run(
            command, input=told, capture_output=True, timeout=WALL_SECONDS, check=False, env=_environment(os.environ)
        )
    except subprocess.TimeoutExpired:
        raise _too_long() from None
    if done.returncode < 0 and -done.returncode in _OUT_OF_TIME:
        raise _too_long()
    try:
        return msgspec.msgpack.decode(done.stdout, type=DecodeResult)
    except msgspec.DecodeError:  # the decoder took the process with it
        raise ImageError("the video breaks its decoder; save it again") from None


_OUT_OF_TIME = (9, 24)  # SIGKILL and SIGXCPU, by which the system ends a process that has had its time


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    """One thread: the models have the cores."""
    return {**given, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _too_long() -> ImageError:
    return ImageError(f"decoding the video takes over {CPU_SECONDS} seconds of a core; send a shorter or smaller one")


def part_of(video: SampledVideo) -> VideoPart:
    """A video's placeholder in a message, beside its frames."""
    return VideoPart(video.times, video.seconds, video.total)
