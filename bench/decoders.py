"""Every decoder of what comes from outside, as a function of bytes that either takes them or refuses them in its way.

What else it raises is a bug, and so is a hang. `SEEDS` are bytes that each takes, for a fuzzer to change.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from google.protobuf.message import DecodeError
from PIL import Image

from cutline.core.json_errors import UNREADABLE
from cutline.core.request import Request
from cutline.core.storage.seal import seal
from cutline.core.wire import Wire
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.devices.link import load_link
from cutline.devices.profile import load_profile
from cutline.edge.api.errors import Refused
from cutline.edge.api.requests.images import pictures
from cutline.edge.api.requests.scanner import Scanner
from cutline.edge.api.requests.schema import ChatRequest, read_request
from cutline.edge.generation.gate import open_gate
from cutline.errors import CutlineError
from cutline.models.bundle import MANIFEST, Bundle, Manifest, read_manifest
from cutline.models.images import decode_image
from cutline.models.prices import open_prices
from cutline.protos import codec, messages, tensors
from cutline.protos.channel import token_file
from cutline.protos.messages import Boundary, Confirmed, Draft, Finished, Likelihood, Open, Opened, Reason
from cutline.protos.v1 import worker_pb2 as pb

_FOLDER = Path(tempfile.mkdtemp(prefix="cutline-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))  # noqa: S108


def agent_message(data: bytes) -> None:
    """What an agent sends a worker, tensors included."""
    _proto(data, pb.AgentMessage, codec.agent_from_wire)


def worker_message(data: bytes) -> None:
    """What a worker sends an agent."""
    _proto(data, pb.WorkerMessage, codec.worker_from_wire)


def description(data: bytes) -> None:
    """What a worker says of itself."""
    _proto(data, pb.Description, codec.description_from_wire)


def tensor(data: bytes) -> None:
    """A tensor alone."""
    _proto(data, pb.Tensor, tensors.decode_tensor)


def image(data: bytes) -> None:
    """An image file."""
    _refusing(decode_image, data)


def http_body(data: bytes) -> None:
    """The body of a chat completion."""

    def read(body: bytes) -> None:
        scanner = Scanner()
        for start in range(0, len(body), 7):  # pieces that end anywhere
            scanner.take(body[start : start + 7])
        whole = scanner.body()
        request = read_request(whole.json)
        found = pictures(request.urls, whole.pictures, None, offline=lambda: False)
        request.question(asyncio.run(found))

    _refusing(read, data)


def manifest(data: bytes) -> None:
    """A bundle's manifest, as it is and with a digest that is right."""
    (_FOLDER / MANIFEST).write_bytes(data)
    with contextlib.suppress(CutlineError):
        read_manifest(_FOLDER)
    (_FOLDER / MANIFEST).write_bytes(seal(_OPENING + data))
    _refusing(read_manifest, _FOLDER)


def gate(data: bytes) -> None:
    """A drafter's calibration."""
    _refusing(open_gate, _calibrated(data, _DRAFTER))


def prices(data: bytes) -> None:
    """A target's calibration."""
    _refusing(open_prices, _calibrated(data, _TARGET))


def profile(data: bytes) -> None:
    """A device's profile."""
    _refusing(load_profile, _file("profile.toml", data))


def link(data: bytes) -> None:
    """A link's profile."""
    _refusing(load_link, _file("link.toml", data))


def tokens_file(data: bytes) -> None:
    """The tokens that a worker takes."""
    _refusing(token_file.Tokens, _file("tokens.toml", data))


DECODERS: dict[str, Callable[[bytes], None]] = {
    one.__name__: one
    for one in (
        agent_message,
        worker_message,
        description,
        tensor,
        image,
        http_body,
        manifest,
        gate,
        prices,
        profile,
        link,
        tokens_file,
    )
}


def seeds(name: str) -> list[bytes]:
    """Bytes that the decoder `name` takes."""
    rows = np.linspace(-3, 3, 24, dtype=np.float32).reshape(3, 8)
    opening = Open(
        model="m", tokens=(1, 2, 3), prompt_length=2, max_tokens=9, images=1, grids=((0, 0),), digests=(bytes(32),)
    )
    picture = Image.fromarray(np.arange(16 * 12 * 3, dtype=np.uint8).reshape(12, 16, 3))
    asked = ChatRequest.asking(Request.about(_encoded(picture, "PNG"), "What?"))
    match name:
        case "agent_message":
            sent: list[messages.AgentMessage] = [opening, *messages.image_chunks(b"file")]
            sent += [Boundary(rows, last=True, wire=wire) for wire in Wire]
            sent += [Draft(3, (1, 2, 3), rows, Wire.INT8), Draft(4, (5,)), messages.Cancel()]
            return [codec.agent_to_wire(one).SerializeToString() for one in sent]
        case "worker_message":
            told = Confirmed(3, (1, 2), 1, (Likelihood(-0.5, ((4, -1.0),)), Likelihood(-0.1)))
            ended = Finished(Reason.STOP, 3, 1, 0.25)
            said: list[messages.WorkerMessage] = [Opened("name", 0.1, 0.2, 0.3), told, ended, CutlineError("why")]
            return [codec.worker_to_wire(one).SerializeToString() for one in said]
        case "description":
            return [pb.Description(model="m", name="n", start="image", end="end", wires=["INT8"]).SerializeToString()]
        case "tensor":
            return [tensors.encode_tensor(rows, wire).SerializeToString() for wire in Wire]
        case "image":
            return [_encoded(picture, kind) for kind in ("PNG", "JPEG", "WEBP")]
        case "http_body":
            return [msgspec.json.encode(asked), b'{"messages": [{"role": "user", "content": "What?"}], "stream": true}']
        case "manifest":
            return [msgspec.json.format(msgspec.json.encode(_TARGET)).removeprefix(_OPENING)]
        case "gate":
            return [msgspec.json.encode(_DRAFTER.calibration)]
        case "prices":
            return [msgspec.json.encode(_TARGET.calibration)]
        case "profile":
            return [_shipped("boards/raspberry-pi-5.toml"), _shipped("gpus/l4.toml")]
        case "link":
            return [_shipped("links/4g.toml")]
        case "tokens_file":
            return [token_file.token_entry("field-3", "secret").encode()]
    raise KeyError(name)


def _refusing(read: Callable[..., object], given: object) -> None:
    with contextlib.suppress(CutlineError, Refused):
        read(given)


def _proto(data: bytes, kind: type, read: Callable[..., object]) -> None:
    try:
        message = kind.FromString(data)  # type: ignore[attr-defined]
    except DecodeError:
        return
    _refusing(read, message)


def _file(name: str, data: bytes) -> Path:
    (_FOLDER / name).write_bytes(data)
    return _FOLDER / name


def _calibrated(data: bytes, bundle: Manifest) -> Bundle:
    """A bundle with what the JSON in `data` says for its calibration, where that is an object."""
    try:
        said = msgspec.json.decode(data, type=dict[str, Any])
    except UNREADABLE:
        said = {}
    return Bundle(_FOLDER, msgspec.structs.replace(bundle, calibration=said))


def _encoded(picture: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def _shipped(name: str) -> bytes:
    return Path(load_profile.__code__.co_filename).parent.joinpath(name).read_bytes()


_OPENING = b"{\n"  # of every manifest
_DRAFTER, _TARGET = read_manifest(DRAFTER), read_manifest(TARGET)
