"""A request as it comes: pictures are taken out of it, whatever its pieces, and nothing that is large is left."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutline.core.request import MAX_IMAGE_BYTES, MAX_IMAGES
from cutline.edge.api.errors import Refused
from cutline.edge.api.requests.body import _coding
from cutline.edge.api.requests.scanner import MAX_WORDS, PIECE, Body, Scanner


def scanned(whole: bytes, size: int = PIECE) -> Body:
    scanner = Scanner()
    for start in range(0, len(whole), size):
        scanner.take(whole[start : start + size])
    return scanner.body()


def url_of(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def put_back(value: Any, pictures: dict[str, bytes | None]) -> Any:
    """What was sent, from what was scanned."""
    match value:
        case {"images": list(names)} if names:
            listed = [base64.b64encode(pictures[name] or b"").decode() for name in names]
            return {"images": listed} | {key: put_back(one, pictures) for key, one in value.items() if key != "images"}
        case dict():
            return {key: put_back(one, pictures) for key, one in value.items()}
        case list():
            return [put_back(one, pictures) for one in value]
        case str() if (picture := pictures.get(value)) is not None:
            return url_of(picture)
        case _:
            return value


words = st.text(max_size=30) | st.sampled_from(
    ['"url":"data:;base64,AAAA"', '\\"url":"', "data:;base64,AAAA", "received:0"]
)
values = st.recursive(
    words.filter(lambda one: not one.startswith("received:")) | st.integers() | st.none() | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(words, inner, max_size=4)
        | st.builds(lambda one: {"image_url": {"url": url_of(one)}}, st.binary(max_size=40))
        | st.builds(lambda one: {"type": "input_image", "image_url": url_of(one)}, st.binary(max_size=40))
        | st.builds(
            lambda some, other: {"images": [base64.b64encode(one).decode() for one in some], "other": other},
            st.lists(st.binary(max_size=40), max_size=3),
            inner,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=60)
@given(values, st.integers(1, 50), st.sampled_from([None, 1]), st.booleans())
def test_what_is_scanned_is_what_was_sent(value: Any, size: int, indent: int | None, ascii_only: bool) -> None:
    body = scanned(json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode(), size)
    assert put_back(json.loads(body.json), body.pictures) == value


@pytest.mark.parametrize("size", [1, 2, 3, 7, PIECE])
@pytest.mark.parametrize("escape", ["/", "+", "=", "A"])
def test_what_other_encoders_escape_is_read(size: int, escape: str) -> None:
    """PHP's writes a slash as `\\/`, .NET's a plus as `\\u002B`."""
    picture = bytes(range(256)) + b"\xff\xfb\xfe"
    sent = json.dumps({"url": url_of(picture)}).encode()
    head, _, rest = sent.partition(b"base64,")
    rest = rest.replace(escape.encode(), b"\\u%04X" % ord(escape)).replace(b"/", b"\\/")
    body = scanned(head.replace(b"/", b"\\/") + b"base64," + rest, size)
    assert list(body.pictures.values()) == [picture]
    assert json.loads(body.json) == {"url": "received:0"}


@pytest.mark.parametrize(
    "payload",
    ["A", "AAA", "AA=A", "AA==AAAA", "====", "AA AA", "A\\nAAA", "AAAé", "AAA\\", "AAA\\u00", "AAA\\u0041\\u"],
)
@pytest.mark.parametrize("size", [1, 4, PIECE])
def test_what_is_not_base64_is_no_picture(payload: str, size: int) -> None:
    with pytest.raises(ValueError, match=r"."):
        base64.b64decode(payload, validate=True)
    body = scanned(b'{"url":"data:;base64,' + payload.encode() + b'"}', size)
    assert body.pictures == {"received:0": None}


@pytest.mark.parametrize(
    ("sent", "left"),
    [
        (
            b'{"images": ["QUE=" , "QkI="], "stop": ["QUE="]}',
            b'{"images": ["received:0" , "received:1"], "stop": ["QUE="]}',
        ),
        (b'{"images": ["QUE="], "images": ["QkI="]}', b'{"images": ["received:0"], "images": ["received:1"]}'),
        (b'{"images": ["QUE="' + b" " * 70 + b',"QkI="]}', b'{"images": ["received:0"' + b" " * 70 + b',"QkI="]}'),
        (b'{"images": ["QUE=", 7, "QkI="]}', b'{"images": ["received:0", 7, "QkI="]}'),
        (b'{"images": []}', b'{"images": []}'),
        (b'{"text": "\\"images\\": [\\"QUE=\\"]"}', b'{"text": "\\"images\\": [\\"QUE=\\"]"}'),
    ],
)
@pytest.mark.parametrize("size", [1, 3, PIECE])
def test_bare_base64_is_taken_from_lists_of_images_alone(sent: bytes, left: bytes, size: int) -> None:
    assert scanned(sent, size).json == left


@pytest.mark.threat("late")
@pytest.mark.parametrize(
    "endless",
    [
        b'{"x":"' + b"A" * (2 << 20),
        b'{"messages":[{"content":"' + b"word " * (1 << 19),
        b'{"url":"data:image/png;base63,' + b"A" * (2 << 20),
        b'{"url":"http://x/' + b"A" * (2 << 20),
        b'"url":"data:' * (1 << 18),
        b'{"images": ["QUFBQUFBQUFB"' + b" " * (2 << 20),
        b'"images": ' * (1 << 18),
        b'"' * (2 << 20),
        b" " * (2 << 20),
    ],
)
def test_words_have_a_limit_of_their_own(endless: bytes) -> None:
    """It is reached long before a body's: no more than a piece beyond it was taken."""
    scanner = Scanner()
    for start in range(0, MAX_WORDS, PIECE):
        scanner.take(endless[start : start + PIECE])
    with pytest.raises(Refused, match="1 MiB beside its images") as found:
        scanner.take(endless[MAX_WORDS : MAX_WORDS + PIECE])
    assert found.value.status == 413


@pytest.mark.threat("late")
def test_pictures_have_a_size_and_a_number() -> None:
    one = b'{"url":"data:;base64,'
    with pytest.raises(Refused, match="32 MiB together") as found:
        scanned(one + b"A" * (MAX_IMAGE_BYTES // 3 * 4 + PIECE))
    assert found.value.status == 413
    with pytest.raises(Refused, match=f"{MAX_IMAGES} at most"):
        scanned(b"[" + (one + b'AAAA"},') * (MAX_IMAGES + 1))


def test_gzip_is_inflated_a_piece_at_a_time() -> None:
    whole = json.dumps({"words": "word " * 50_000, "url": url_of(bytes(100_000))}).encode()
    packed, coding, pieces = gzip.compress(whole), _coding("gzip"), list[bytes]()
    for start in range(0, len(packed), 100):
        pieces += coding.decoded(packed[start : start + 100])
    coding.end()
    assert b"".join(pieces) == whole
    assert max(map(len, pieces)) <= PIECE


@pytest.mark.threat("late")
@pytest.mark.parametrize(
    "broken",
    [b"plain", gzip.compress(b"{}")[:-1], gzip.compress(b"{}") + b"more", b""],
    ids=["plain", "cut short", "more behind it", "empty"],  # a packed body holds the time, and no two runs the same one
)
def test_what_is_not_gzip_is_refused(broken: bytes) -> None:
    def inflated() -> bytes:
        coding = _coding("gzip")
        whole = b"".join(coding.decoded(broken))
        coding.end()
        return whole

    with pytest.raises(Refused, match="gzip") as found:
        inflated()
    assert found.value.status == 400
