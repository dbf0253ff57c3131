"""The process that decodes one video: from standard input to standard output, under limits of its own.

A decoder that a file breaks, or sends round in circles, takes this process with it and nothing else.
"""

from __future__ import annotations

import re
import resource
import sys

import msgspec

from cutline.core.request import MAX_IMAGE_BYTES
from cutline.edge.video.sampled import DecodeFailure, DecodeOrder, DecodeResult, SampledVideo
from cutline.errors import ImageError, InputError

MAX_MEMORY = 3 << 30  # bytes of address space, of which libraries take one
CPU_SECONDS = 15

_ANIMATED = re.compile(rb"GIF8|\x89PNG\r\n\x1a\n|(?s:RIFF.{4}WEBP)")
_CONTAINERS = {  # by how their files begin
    "mov": re.compile(rb"(?s).{4}(?:ftyp|moov|mdat|wide)"),
    "matroska": re.compile(rb"\x1aE\xdf\xa3"),  # WebM, too
    "avi": re.compile(rb"(?s)RIFF.{4}AVI "),
}
_UNKNOWN = "this is no video that is taken; give MP4, MOV, WebM, Matroska, AVI, or an animated GIF, WebP or PNG"


def decoded(data: bytes, order: DecodeOrder) -> SampledVideo:
    """The frames of a video that are looked at. Raises InputError, ImageError."""
    if _ANIMATED.match(data):
        from cutline.edge.video.animation import read_animation

        return read_animation(data, order)
    container = next((name for name, begins in _CONTAINERS.items() if begins.match(data)), None)
    if container is None:
        raise ImageError(_UNKNOWN)
    from cutline.edge.video.stream import read_stream

    return read_stream(data, container, order)


def _bounded(video: SampledVideo) -> SampledVideo:
    """Raises ImageError for frames that are more than a request may have."""
    if sum(map(len, video.frames)) > MAX_IMAGE_BYTES:
        raise ImageError(f"the video's frames are over {MAX_IMAGE_BYTES >> 20} MiB together; send a smaller one")
    return video


def main() -> None:
    """Read the length of the order, the order and the video; write the result."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # pipes are no files
    given = sys.stdin.buffer
    order = msgspec.msgpack.decode(given.read(int.from_bytes(given.read(4), "big")), type=DecodeOrder)
    try:
        result = DecodeResult(video=_bounded(decoded(given.read(), order)))
    except InputError as error:
        result = DecodeResult(failure=DecodeFailure(str(error)))
    except MemoryError:
        result = DecodeResult(failure=DecodeFailure("decoding the video takes too much memory; save it smaller"))
    sys.stdout.buffer.write(msgspec.msgpack.encode(result))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
