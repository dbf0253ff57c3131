"""The list of revoked certificates, which `cutline keys revoke` writes. Workers and directories read it.

    [[revoked]]
    name = "camera1"     # whose it was
    sha256 = "..."       # of the signed part of the certificate, its tbsCertificate, in hexadecimal

It is reloaded when it changes. If it cannot be read then, the old list stays in force.

The hash covers only the signed part. A fingerprint of the whole certificate could be changed by its holder: an ECDSA
signature can be turned into another valid one.
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
    """The list at `path`. Raises InputError if it cannot be read at first."""

    def __init__(self, path: Path) -> None:
        self._names = Renewed("the list of revoked certificates", (path,), lambda: _read(path))

    def check(self, certificate: bytes | None) -> None:
        """Raises AccessDenied for a `certificate` (DER) that is revoked, malformed, or missing."""
        signed = None if certificate is None else signed_part(certificate)
        if signed is None:
            raise AccessDenied("no certificate was shown that could be looked up among those that are revoked")
        if (name := self._names.now().get(signed_hash(signed))) is not None:
            raise AccessDenied(f"the certificate of {name} was revoked; its operator may make another")

    def has(self, signed: bytes) -> bool:
        """Whether the certificate with this `signed` part is revoked."""
        return signed_hash(signed) in self._names.now()


def signed_hash(signed: bytes) -> str:
    """The hash in the list of the certificate with this `signed` part."""
    return hashlib.sha256(signed).hexdigest()


def revoked_entry(name: str, signed: bytes) -> str:
    """The lines to append to a list to revoke the certificate of `name`. Raises InputError."""
    return f'\n[[revoked]]\nname = "{check_tenant(name)}"\nsha256 = "{signed_hash(signed)}"\n'


def signed_part(certificate: bytes) -> bytes | None:
    """The signed part of a certificate (DER), its first element; None if it is malformed."""
    if (whole := _element(certificate, 0)) is None or (signed := _element(certificate, whole[0])) is None:
        return None
    start, end = whole[0], signed[1]
    return certificate[start:end] if end <= whole[1] else None


def _element(data: bytes, at: int) -> tuple[int, int] | None:
    """Start and end of the content of the DER sequence that begins `at` (X.690, section 10.1); None if malformed."""
    head = data[at : at + 2]
    if len(head) < 2 or head[0] != _SEQUENCE:
        return None
    more = max(0, head[1] - 0x80)  # bytes of a long-form length
    begin = at + 2 + more
    length = int.from_bytes(data[at + 2 : begin], "big") if more else head[1]
    return (begin, begin + length) if head[1] != 0x80 and begin + length <= len(data) else None


def _read(path: Path) -> dict[str, str]:
    """The names in the list by hash. Raises InputError."""
    try:
        content = msgspec.toml.decode(read_public(path, what="list of revoked certificates"), type=_Content)
    except UNREADABLE as error:
        raise InputError(f"the list of revoked certificates {path} does not read: {error}") from None
    return {entry.sha256: entry.name for entry in content.revoked}
