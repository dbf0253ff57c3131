"""Videos that come with a question, decoded by a process of their own."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Mapping
from contextlib import suppress
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
AT_ONCE = 2  # videos that an agent decodes; the others wait
MAX_ANSWER = MAX_IMAGE_BYTES + (1 << 20)  # bytes: frames, and what is said of them
_MODULE = "cutline.edge.video.child"
# Variables by which Python, its libraries and coverage are found; an LD_ one may be how this Python runs at all.
_TOLD = ("PATH", "HOME", "LANG", "LC_", "TMP", "TEMP", "PYTHON", "LD_", "DYLD_", "COVERAGE")


async def read_video(data: bytes, family: Family, *, most: int) -> SampledVideo:
    """The frames, `most` at most, at which models of a `family` look of a video in the bytes of a file.

    Takes a moment in a process of its own, which ends when nobody waits for it. Raises ImageError, also where an extra
    is needed.
    """
    if len(data) > MAX_IMAGE_BYTES:
        raise ImageError(f"the video is over {MAX_IMAGE_BYTES >> 20} MiB; send a shorter or smaller one")
    fields: Any = msgspec.to_builtins(family)
    order = msgspec.msgpack.encode(DecodeOrder(family=fields, most=most))
    result = await _asked(len(order).to_bytes(4, "big") + order + data)
    if result.failure is not None:
        raise ImageError(result.failure.why)
    assert result.video is not None
    return result.video


async def _asked(told: bytes) -> DecodeResult:
    """What the process answers. Raises ImageError."""
    process = await asyncio.create_subprocess_exec(
        *tied_command(_MODULE), stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=decoder_environment(os.environ)
    )
    try:
        async with asyncio.timeout(WALL_SECONDS):
            telling = asyncio.create_task(_tell(process, told))
            try:
                answer = await _heard(process)
                await process.wait()
            finally:
                telling.cancel()
    except TimeoutError:
        raise _too_long() from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode in _OUT_OF_TIME:
        raise _too_long()
    try:
        return msgspec.msgpack.decode(answer, type=DecodeResult)
    except msgspec.DecodeError:  # the decoder took the process with it
        raise ImageError("the video breaks its decoder; save it again") from None


async def _tell(process: asyncio.subprocess.Process, told: bytes) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError, ConnectionResetError):  # it has ended
        process.stdin.write(told)
        await process.stdin.drain()
        process.stdin.close()


async def _heard(process: asyncio.subprocess.Process) -> bytes:
    """All that the process says, or as much of it as any answer has."""
    assert process.stdout is not None
    heard = bytearray()
    while piece := await process.stdout.read(1 << 20):
        heard += piece
        if len(heard) > MAX_ANSWER:
            process.kill()
            break
    return bytes(heard)


_OUT_OF_TIME = (-signal.SIGKILL, -signal.SIGXCPU)  # by which the system ends a process that has had its time


def decoder_environment(given: Mapping[str, str]) -> dict[str, str]:
    """What the process is told of an agent's environment: no token or key, as a video may take its decoder over.

    One thread: the models have the cores.
    """
    kept = {name: value for name, value in given.items() if name.startswith(_TOLD)}
    return {**kept, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _too_long() -> ImageError:
    return ImageError(f"decoding the video takes over {CPU_SECONDS} seconds of a core; send a shorter or smaller one")


def part_of(video: SampledVideo) -> VideoPart:
    """A video's placeholder in a message, beside its frames."""
    return VideoPart(video.times, video.seconds, video.total)
