"""The messages between agent and worker as plain frozen types; `cutline.protos.codec` has their wire format."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from cutline.core.request import Priority
from cutline.core.sampling import GREEDY, Sampling
from cutline.core.wire import Wire, bytes_per_row
from cutline.errors import CutlineError, InputError
from cutline.protos.tensors import CHUNK
from cutline.protos.v1 import worker_pb2 as pb

MAX_TOKENS = 1 << 20  # in one message
DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """A worker's description of itself; see the .proto for each field."""

    model: str
    name: str
    version: str
    vision_layers: int
    decoder_layers: int
    context: int
    sessions: int
    max_sessions: int
    start: str
    end: str
    queue_seconds: float = 0.0
    draining: bool = False
    blocked: str = ""
    wires: tuple[Wire, ...] = ()
    features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Opens a session with `tokens`, the prompt and what is already confirmed; `images` images follow.

    `digests` name the images as they cross the cut; the worker has the first `known` of them cached, so they are not
    sent. `likelihoods` asks for the log probability of each token and of the likeliest `alternatives`. `request_id`
    names the request in all logs. The files of images among `pieces` are strips of videos; `times`
    say how many positions in time each image stands behind its video's first piece, or are none. What is to be answered
    may only be kept if it says `store`. Sessions of a higher `priority` go first.
    """

    model: str
    tokens: tuple[int, ...]
    prompt_length: int
    max_tokens: int
    cut: str = "image"
    images: int = 0
    sampling: Sampling = GREEDY
    effort: float = 1.0
    draft: tuple[int, ...] = ()
    grids: tuple[tuple[int, int], ...] = ()
    digests: tuple[bytes, ...] = ()
    known: int = 0
    pieces: tuple[int, ...] = ()
    times: tuple[int, ...] = ()
    likelihoods: bool = False
    alternatives: int = 0
    request_id: str = ""
    store: bool = False
    priority: Priority = Priority.NORMAL


@dataclass(frozen=True, slots=True)
class ImageChunk:
    """A piece of an image file."""

    data: bytes
    last: bool


SIDES = "sides"  # the tensor of a boundary with the rows of pictures beside the prompt


@dataclass(frozen=True, slots=True)
class Boundary:
    """A piece of the boundary: whole `rows` (n, width), encoded as `wire` and decoded as float32.

    They are of the rows at the cut, or of another `tensor`: SIDES.
    """

    rows: NDArray[Any]
    last: bool
    wire: Wire = Wire.FLOAT32
    tensor: str = ""


@dataclass(frozen=True, slots=True)
class Draft:
    """Drafted tokens from `position` on.

    For a cut inside the decoder `rows` (n, width) has the boundary row of each, encoded as `wire` and decoded as
    float32.
    """

    position: int
    tokens: tuple[int, ...]
    rows: NDArray[Any] | None = None
    wire: Wire = Wire.FLOAT32


@dataclass(frozen=True, slots=True)
class Cancel:
    """Ends the session early."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The session is open; `session` is its random name in the logs.

    The seconds are on the worker's clock: from the arrival of the opening to the end of the upload, of preparing the
    upload, and of waiting for the running pass. `kept` says that the images are cached under their digests, `reused`
    how many of the prompt's tokens were in the KV cache of an earlier session.
    """

    session: str
    upload_seconds: float = 0.0
    prepare_seconds: float = 0.0
    queue_seconds: float = 0.0
    kept: bool = False
    reused: int = 0


@dataclass(frozen=True, slots=True)
class Likelihood:
    """The log probability of a token (natural, at temperature 1), and (token, logprob) of the likeliest tokens."""

    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The target's own tokens from `position` on; the first `accepted` of them confirm a draft.

    `likelihoods` has one for each token, if the opening asked for them.
    """

    position: int
    tokens: tuple[int, ...]
    accepted: int
    likelihoods: tuple[Likelihood, ...] = ()


class Reason(enum.Enum):
    """Why an answer ended: the model stopped, or a limit was reached."""

    STOP = pb.Finished.STOP
    LENGTH = pb.Finished.LENGTH


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete. `cloud_seconds` is this session's share of `passes` passes of the model."""

    reason: Reason
    passes: int
    verified: int
    cloud_seconds: float


AgentMessage = Open | ImageChunk | Boundary | Draft | Cancel
WorkerMessage = Opened | Confirmed | Finished | CutlineError  # an error is a message like any other


def image_chunks(data: bytes) -> Iterator[ImageChunk]:
    """An image file in pieces small enough for the wire."""
    for start in range(0, len(data), CHUNK):
        yield ImageChunk(data[start : start + CHUNK], last=start + CHUNK >= len(data))


def boundary_chunks(rows: NDArray[Any], wire: Wire, *, more: bool = False, tensor: str = "") -> Iterator[Boundary]:
    """A boundary (n, width) in pieces of whole rows small enough for a message. Raises InputError if one row is not.

    `more` says that further rows will follow.
    """
    step = _rows_a_message(wire, rows.shape[1])
    for start in range(0, len(rows), step):
        yield Boundary(
            rows[start : start + step], last=not more and start + step >= len(rows), wire=wire, tensor=tensor
        )


def draft_chunks(position: int, tokens: Sequence[int], rows: NDArray[Any], wire: Wire) -> Iterator[Draft]:
    """A draft with its boundary `rows` (n, width) in pieces small enough for a message.

    Raises InputError if a single row is not.
    """
    step = _rows_a_message(wire, rows.shape[1])
    for start in range(0, len(rows), step):
        piece = slice(start, start + step)
        yield Draft(position + start, tuple(tokens[piece]), rows[piece], wire)


def _rows_a_message(wire: Wire, width: int) -> int:
    step = CHUNK // bytes_per_row(wire, width)
    if step == 0:
        raise InputError(f"a row of {width} values as {wire} is over {CHUNK} bytes, more than a message takes")
    return step
