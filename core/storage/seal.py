"""JSON that holds a digest of itself, so that any changed byte is noticed, be it by a disk or by hand."""

from __future__ import annotations

import hashlib
import re

_SEAL = re.compile(rb'\{\n  "sha256": "([0-9a-f]{64})",\n')
_REST = b"{\n"


def seal(document: bytes) -> bytes:
    """A non-empty JSON object, indented by two spaces, with the digest of its content added as the first key."""
    assert document.startswith(_REST)
    rest = document.removeprefix(_REST)
    return b'{\n  "sha256": "' + hashlib.sha256(rest).hexdigest().encode() + b'",\n' + rest


def is_sealed(document: bytes) -> bool:
    """Whether a document begins with a digest, right or wrong."""
    return _SEAL.match(document) is not None


def unseal(document: bytes) -> bytes:
    """The object without its digest. Raises ValueError if it has none, or one that does not match."""
    if (found := _SEAL.match(document)) is None:
        raise ValueError("it has no digest of its own")
    rest = document[found.end() :]
    if hashlib.sha256(rest).hexdigest().encode() != found[1]:
        raise ValueError("its digest is that of other content")
    return _REST + rest
