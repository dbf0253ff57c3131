"""Content in a file that says whether it is whole: with a digest, or sealed by a key (AES-256-GCM).

The library that seals is that of the extra `keys`.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass

from cutline.errors import InputError
from cutline.errors.extras import missing

_KEY = re.compile(r"[0-9A-Fa-f]{64}")
_NONCE_BYTES = 12
_NAME_BYTES = 8
_DIGEST_BYTES = 32


class SealingKey:
    """A key, from 64 hexadecimal digits. Raises InputError for others, and without the extra `keys`."""

    def __init__(self, text: str) -> None:
        if _KEY.fullmatch(text := text.strip()) is None:
            raise InputError("a key that seals is 64 hexadecimal digits; make one with `openssl rand -hex 32`")
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ModuleNotFoundError:
            raise missing("to seal what is kept needs cryptography", "keys") from None
        key = bytes.fromhex(text)
        self.name = hashlib.sha256(b"cutline journal" + key).digest()[:_NAME_BYTES]  # tells keys apart
        self._cipher = AESGCM(key)

    def seal(self, content: bytes) -> bytes:
        """The content as only who has the key can read it."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, content, None)

    def unseal(self, sealed: bytes) -> bytes:
        """The content again. Raises ValueError if another key sealed it, or it was changed or cut short."""
        from cryptography.exceptions import InvalidTag

        nonce = sealed[:_NONCE_BYTES]
        if len(nonce) < _NONCE_BYTES:
            raise ValueError("it is cut short")
        try:
            return self._cipher.decrypt(nonce, sealed[_NONCE_BYTES:], None)
        except InvalidTag:
            raise ValueError("it was changed or cut short") from None


@dataclass(frozen=True, slots=True)
class Envelope:
    """What files of one `kind` begin with, which are of the `place`: its key is given by an `option`."""

    kind: str
    place: str
    option: str

    @property
    def _plain(self) -> bytes:
        return f"cutline {self.kind} 1 plain\n".encode()

    @property
    def _sealed(self) -> bytes:
        return f"cutline {self.kind} 1 sealed\n".encode()

    def close(self, content: bytes, key: SealingKey | None) -> bytes:
        """The content as a file has it."""
        if key is None:
            return self._plain + hashlib.sha256(content).digest() + content
        return self._sealed + key.name + key.seal(content)

    def open(self, file: bytes, key: SealingKey | None) -> bytes:
        """The content of a file. Raises InputError without its key, ValueError if it is torn or of no such kind."""
        if file.startswith(self._sealed):
            sealed = file.removeprefix(self._sealed)
            if key is None:
                raise InputError(f"the {self.place} is sealed; give its key as {self.option}")
            if len(sealed) < _NAME_BYTES:
                raise ValueError("it is cut short")
            if sealed[:_NAME_BYTES] != key.name:
                raise InputError(f"the {self.place} was sealed by another key; give that one as {self.option}")
            return key.unseal(sealed[_NAME_BYTES:])
        if not file.startswith(self._plain):
            raise ValueError(f"it is no {self.kind}")
        rest = file.removeprefix(self._plain)
        digest, content = rest[:_DIGEST_BYTES], rest[_DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != digest:
            raise ValueError("it was changed or cut short")
        return content

    def is_closed_by(self, file: bytes, key: SealingKey | None) -> bool:
        """Whether a file, by its beginning, is sealed by this very key, or by none where there is none."""
        return file.startswith(self._plain if key is None else self._sealed + key.name)
