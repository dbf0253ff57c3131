"""A request's JSON as it comes: pictures are decoded out of it piece by piece, and what is left has a limit of its own.

So what is decoded as JSON is small whatever was sent, and no step that others wait for is longer than a piece.
"""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass, field

from cutline.core.request import MAX_IMAGE_BYTES, MAX_IMAGES
from cutline.edge.api.errors import Fault, Refused
from cutline.errors import InputError

MAX_WORDS = 1 << 20  # bytes of a request beside its pictures: every character of the longest prompt as an escape
PIECE = 64 << 10  # bytes that are taken in one step

RECEIVED = "received:"  # what the names of pictures begin with

_SPACE = rb"[ \t\r\n]{0,64}"
# What a picture begins with: a `data:` URL, or the bare base64 of Ollama's lists. In JSON a quote within a string has a
# backslash, so this stands for nothing else.
_URL = rb'"(?:image_)?url"%b:%b"(?P<url>[Dd][Aa][Tt][Aa]:(?:[^",\\]|\\/){0,100};base64,)' % (_SPACE, _SPACE)
_LIST = rb'"images"%b:%b\[%b"' % (_SPACE, _SPACE, _SPACE)
_BEGIN = re.compile(_URL + b"|" + _LIST)
_NEXT = re.compile(rb'"%b,%b"' % (_SPACE, _SPACE))  # behind a picture of a list: another one
_PERHAPS_NEXT = re.compile(rb'(?:"%b(?:,%b)?)?' % (_SPACE, _SPACE))  # or what may become that
_LONGEST = 360  # bytes that match it
_ESCAPE = re.compile(rb"\\(?:/|u00([2-7][0-9A-Fa-f]))")  # of characters that base64 has
_LONGEST_ESCAPE = 6


@dataclass(frozen=True, slots=True)
class Body:
    """A request's JSON, in which a name stands for the URL of each picture, and the pictures by that name.

    One that was not base64 is None.
    """

    json: bytes
    pictures: dict[str, bytes | None] = field(default_factory=dict)


class Scanner:
    """Takes the pieces of one request. Raises Refused for words or pictures beyond what a request may have."""

    def __init__(self) -> None:
        self._words = bytearray()
        self._searched = 0  # bytes of them in which no picture begins
        self._pictures: dict[str, bytes | None] = {}
        self._size = 0  # bytes of the pictures
        self._picture: _Picture | None = None  # that is being read
        self._listed = False  # the last picture stood in a list

    def take(self, piece: bytes) -> None:
        """The next piece, which is best no longer than PIECE."""
        while piece:
            piece = self._words_of(piece) if self._picture is None else self._picture_of(self._picture, piece)

    def body(self) -> Body:
        """What came, once all of it has."""
        return Body(bytes(self._words), self._pictures)

    def _words_of(self, piece: bytes) -> bytes:
        """Take words up to where a picture begins; returns the rest."""
        self._words += piece
        rest = b""
        if (begin := self._begin()) is not None:
            rest = bytes(self._words[begin.end() :])
            if len(self._pictures) == MAX_IMAGES:
                raise _beyond(400, f"over {MAX_IMAGES} images are too many; send {MAX_IMAGES} at most")
            self._picture = _Picture()
            url = begin.start("url") if begin.re is _BEGIN else -1
            self._listed = url < 0
            del self._words[begin.end() if self._listed else url :]
        if len(self._words) > MAX_WORDS:
            raise _beyond(413, f"the request is over {MAX_WORDS >> 20} MiB beside its images; send less text")
        return rest

    def _begin(self) -> re.Match[bytes] | None:
        """Where the next picture begins, if that is there."""
        if self._listed:
            if (begin := _NEXT.match(self._words, self._searched)) is not None:
                return begin
            if _PERHAPS_NEXT.fullmatch(self._words, self._searched):
                return None
            self._listed = False
        begin = _BEGIN.search(self._words, self._searched)
        if begin is None:
            self._searched = max(self._searched, len(self._words) - _LONGEST)
        return begin

    def _picture_of(self, picture: _Picture, piece: bytes) -> bytes:
        """Take a picture up to its end; returns the rest."""
        end = piece.find(b'"')
        self._size += picture.take(piece if end < 0 else piece[:end])
        if end >= 0:
            self._size += picture.end()
        if self._size > MAX_IMAGE_BYTES:
            raise _beyond(413, f"the images are over {MAX_IMAGE_BYTES >> 20} MiB together; save them smaller")
        if end < 0:
            return b""
        name = f"{RECEIVED}{len(self._pictures)}"
        self._pictures[name] = picture.content
        self._picture = None
        self._words += name.encode()
        self._searched = len(self._words)
        return piece[end:]


class _Picture:
    """A picture's base64, which is decoded as it comes."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._escaped = b""  # what may go on as an escape in the next piece
        self._digits = b""  # fewer than make a byte
        self._over = False  # it was padded
        self._wrong = False

    @property
    def content(self) -> bytes | None:
        """The picture, None where it was not base64."""
        return None if self._wrong else b"".join(self._parts)

    def take(self, piece: bytes) -> int:
        """The next piece; returns how many bytes of the picture that was."""
        piece = self._escaped + piece
        held = piece.rfind(b"\\", max(0, len(piece) - _LONGEST_ESCAPE + 1))
        self._escaped = b"" if held < 0 else piece[held:]
        return self._decode(piece if held < 0 else piece[:held])

    def end(self) -> int:
        """There is no more; returns likewise."""
        size = self._decode(self._escaped)
        self._wrong |= self._digits != b""
        return size

    def _decode(self, text: bytes) -> int:
        if self._wrong or not text:
            return 0
        if b"\\" in text:
            text = _ESCAPE.sub(lambda found: b"/" if found[1] is None else bytes([int(found[1], 16)]), text)
        digits = self._digits + text
        whole = len(digits) // 4 * 4
        self._digits = digits[whole:]
        try:
            part = binascii.a2b_base64(digits[:whole], strict_mode=True)
        except binascii.Error:
            part = b""
            self._wrong = True
        if self._over:  # nothing may follow the padding
            self._wrong = True
        self._over = digits[:whole].endswith(b"=")
        self._parts.append(part)
        return len(part)


def _beyond(status: int, message: str) -> Refused:
    # A connection whose body was not read to its end is of no more use.
    return Refused(status, Fault(message, InputError.__name__), {"connection": "close"})
