"""The list of certificates that are not taken any more, of `cutline keys revoke`. Workers and directories read it.

    [[revoked]]
    name = "camera1"     # whose it was
    sha256 = "..."       # of what the authority signed, its tbsCertificate, in hexadecimal

It is read anew when it changes. One that does not read then changes nothing: who is shut out stays so.

Not the whole certificate is hashed, as fingerprints are: who has one with an ECDSA signature can write down another
signature that is as good, and so have another fingerprint. What was signed nobody can change.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import msgspec

from cutline.core.json_errors import UNREADABLE
from cutline.errors import AccessDenied, InputError
from cutline.protos.channel.credentials import read_public
from cutline.protos.channel.reloading import Renewed
from cutline.protos.channel.token_file import SHA256, check_tenant

_SEQUENCE = 0x30  # X.690, section 8.9


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    sha256: Annotated[str, msgspec.Meta(pattern=SHA256)]


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    revoked: tuple[_Entry, ...] = ()


class Revoked:
    """The list at `path`. Raises InputError if it does not read when it is opened."""

    def __init__(self, path: Path) -> None:
        self._names = Renewed("the list of revoked certificates", (path,), lambda: _read(path))

    def check(self, certificate: bytes | None) -> None:
        """Raises AccessDenied for a `certificate` (DER) that is revoked, is none, or was not shown."""
        signed = None if certificate is None else signed_part(certificate)
        if signed is None:
            raise AccessDenied("no certificate was shown that could be looked up among those that are revoked")
        if (name := self._names.now().get(signed_hash(signed))) is not None:
            raise AccessDenied(f"the certificate of {name} was revoked; its operator may make another")

    def has(self, signed: bytes) -> bool:
        """Whether the certificate of which that was `signed` is revoked."""
        return signed_hash(signed) in self._names.now()


def signed_hash(signed: bytes) -> str:
    """What the list has of a certificate, of which that was `signed`."""
    return hashlib.sha256(signed).hexdigest()


def revoked_entry(name: str, signed: bytes) -> str:
    """The lines that revoke the certificate of `name`, to put at the end of a list. Raises InputError."""
    return f'\n[[revoked]]\nname = "{check_tenant(name)}"\nsha256 = "{signed_hash(signed)}"\n'


def signed_part(certificate: bytes) -> bytes | None:
    """What the authority signed of a certificate (DER), the first thing in it; None if there is nothing of the kind."""
    if (whole := _element(certificate, 0)) is None or (signed := _element(certificate, whole[0])) is None:
        return None
    start, end = whole[0], signed[1]
    return certificate[start:end] if end <= whole[1] else None


def _element(data: bytes, at: int) -> tuple[int, int] | None:
    """Where the content of the sequence that begins `at` begins and ends: X.690, section 10.1."""
    head = data[at : at + 2]
    if len(head) < 2 or head[0] != _SEQUENCE:
        return None
    more = max(0, head[1] - 0x80)  # bytes that its length takes
    begin = at + 2 + more
    length = int.from_bytes(data[at + 2 : begin], "big") if more else head[1]
    return (begin, begin + length) if head[1] != 0x80 and begin + length <= len(data) else None


def _read(path: Path) -> dict[str, str]:
    """Names by hashes. Raises InputError."""
    try:
        content = msgspec.toml.decode(read_public(path, what="list of revoked certificates"), type=_Content)
    except UNREADABLE as error:
        raise InputError(f"the list of revoked certificates {path} does not read: {error}") from None
    return {entry.sha256: entry.name for entry in content.revoked}
