"""Films in containers as videos, by PyAV (the extra `camera`): some of their frames, each from the key frame before it.

What a header says of length, rate and number of frames is not believed: the packets are counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from cutline.edge.video.animation import check_size, damaged, too_many
from cutline.edge.video.display import as_jpeg, check_video, pixel_ratio
from cutline.edge.video.sampled import MAX_FRAMES, DecodeOrder, SampledVideo
from cutline.errors import ImageError
from cutline.models.images import MAX_PIXELS
from cutline.models.video import Footage

if TYPE_CHECKING:
    from av import VideoFrame

CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg")
RATE = 25.0  # frames a second of a film that says nothing of time


def read_stream(data: bytes, container: str, order: DecodeOrder) -> SampledVideo:
    """The frames that are looked at, as JPEG, of a film in such a `container`. Raises InputError, ImageError."""
    check_video()
    import av

    try:
        # The container is given: FFmpeg would find formats that name other files, and open those.
        with av.open(BytesIO(data), format=container) as opened:
            return _read(opened, order)
    except (av.FFmpegError, OSError, ValueError, ArithmeticError):
        raise damaged() from None


def _read(opened: Any, order: DecodeOrder) -> SampledVideo:
    if not opened.streams.video:
        raise ImageError("there is no video in the file")
    stream = opened.streams.video[0]
    decoder = stream.codec_context
    if decoder is None or decoder.codec.canonical_name not in CODECS:
        raise ImageError(f"the video's codec is not one that is taken; save it as one of {', '.join(CODECS)}")
    check_size((decoder.width, decoder.height))
    decoder.thread_type = "NONE"  # the models have the cores
    decoder.options = {"max_pixels": str(MAX_PIXELS)}
    packets = []
    for packet in opened.demux(stream):
        if packet.size:
            packets.append(packet)
        if len(packets) > MAX_FRAMES:
            raise too_many()
    if not packets:
        raise damaged()
    marks = sorted(_mark(packet, index) for index, packet in enumerate(packets))
    timed = all(packet.pts is not None or packet.dts is not None for packet in packets)
    unit = float(stream.time_base or 0) if timed else 0.0
    length = (marks[-1] - marks[0]) * unit
    if length > 0:
        rate = (len(marks) - 1) / length
        times = [(mark - marks[0]) * unit for mark in marks]
    else:
        rate = float(stream.average_rate or 0) or RATE
        times = [index / rate for index in range(len(marks))]
    footage = Footage(len(marks), rate)
    indices = order.sample(footage)
    frames = _decoded(decoder, packets, [marks[index] for index in indices])
    ratio = pixel_ratio(opened)
    return SampledVideo(
        frames=tuple(as_jpeg(frame, ratio) for frame in frames),
        times=tuple(times[index] for index in indices),
        seconds=max(footage.seconds, times[-1]),
        total=len(marks),
    )


def _mark(packet: Any, index: int) -> int:
    """By which a packet's frame is known, in the order in which frames are shown."""
    found = packet.pts if packet.pts is not None else packet.dts
    return index if found is None else int(found)


def _decoded(decoder: Any, packets: Sequence[Any], wanted: Sequence[int]) -> Iterator[Any]:
    """The frames with the marks `wanted`, or the next ones that there are. Raises ImageError."""
    keys = [index for index, packet in enumerate(packets) if packet.is_keyframe] or [0]
    groups: dict[int, list[int]] = {}
    for mark in wanted:
        before = [index for index in keys if _mark(packets[index], index) <= mark]
        groups.setdefault(before[-1] if before else keys[0], []).append(mark)
    for start, marks in groups.items():
        decoder.flush_buffers()
        left, last = list(marks), None
        for frame in _frames(decoder, packets, start):
            check_size((frame.width, frame.height))
            last = frame
            shown = frame.dts if frame.pts is None else frame.pts
            while left and (shown is None or shown >= left[0]):
                left.pop(0)
                yield frame
            if not left:
                break
        if left and last is None:
            raise damaged()
        for _ in left:
            assert last is not None
            yield last


def _frames(decoder: Any, packets: Sequence[Any], start: int) -> Iterator[VideoFrame]:
    """What is decoded from a packet on, without what is damaged."""
    import av

    for packet in (*packets[start:], None):
        try:
            decoded = decoder.decode(packet)
        except (av.InvalidDataError, EOFError):
            continue
        yield from decoded
