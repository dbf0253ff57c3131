"""The key that seals a journal of escalations: AES-256-GCM, by the library of the extra `keys`."""

from __future__ import annotations

import hashlib
import os
import re

from cutline.errors import InputError
from cutline.errors.extras import missing

_KEY = re.compile(r"[0-9A-Fa-f]{64}")
_NONCE_BYTES = 12
_NAME_BYTES = 8


class JournalKey:
    """A key, from 64 hexadecimal digits. Raises InputError for others, and without the extra `keys`."""

    def __init__(self, text: str) -> None:
        if _KEY.fullmatch(text := text.strip()) is None:
            raise InputError("a journal's key is 64 hexadecimal digits; make one with `openssl rand -hex 32`")
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ModuleNotFoundError:
            raise missing("a sealed journal needs cryptography", "keys") from None
        key = bytes.fromhex(text)
        self.name = hashlib.sha256(b"cutline journal" + key).digest()[:_NAME_BYTES]  # tells keys apart
        self._cipher = AESGCM(key)

    def seal(self, content: bytes) -> bytes:
        """The content as only who has the key can read it."""
        nonce = os.urandom(_NONCE_BYTES)
        return self.name + nonce + self._cipher.encrypt(nonce, content, None)

    def unseal(self, sealed: bytes) -> bytes:
        """The content again. Raises InputError if another key sealed it, ValueError if it was changed or cut short."""
        from cryptography.exceptions import InvalidTag

        name, nonce = sealed[:_NAME_BYTES], sealed[_NAME_BYTES : _NAME_BYTES + _NONCE_BYTES]
        if len(nonce) < _NONCE_BYTES:
            raise ValueError("it is cut short")
        if name != self.name:
            raise InputError("the journal was sealed by another key; give that one as --journal-key-file")
        try:
            return self._cipher.decrypt(nonce, sealed[_NAME_BYTES + _NONCE_BYTES :], None)
        except InvalidTag:
            raise ValueError("it was changed or cut short") from None
