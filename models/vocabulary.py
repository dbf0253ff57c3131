"""A bundle's tokenizer: text to token ids and back. A user's text can never become a special token.

`guard` puts MARK after every character of a user's text that could begin an added token such as `<image>`. After the
template is rendered, `encode` splits at the added tokens that are still intact, which are the template's own, removes
the marks, and encodes the rest as ordinary text. So a text without special tokens gets the same ids as if the rendered
prompt were encoded at once; there is no split where the text meets the template.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders

from cutline.errors import BundleError, PromptError
from cutline.models.bundle import Bundle

TOKENIZER = "tokenizer.json"
MARK = "\ufdd0"  # a noncharacter, which Unicode reserves for internal use, so `guard` may refuse it in a text


def _byte_characters() -> dict[str, int]:
    """The bytes by their character in byte-level BPE: the byte itself if printable, else a character from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTES = _byte_characters()


class Vocabulary:
    """A byte-level BPE tokenizer and its added tokens. `added` maps each added token's text to its id."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises BundleError for a tokenizer of another kind, or with added tokens that match loosely."""
        if not isinstance(tokenizer.decoder, decoders.ByteLevel):
            raise BundleError(f"{TOKENIZER} is not byte-level BPE, the only kind that runs here")
        tokens = tokenizer.get_added_tokens_decoder()
        if not tokens:
            raise BundleError(f"{TOKENIZER} has no special tokens, so no prompt can be told from its text")
        for token in tokens.values():
            if token.lstrip or token.rstrip or token.single_word or token.normalized or len(token.content) < 2:
                raise BundleError(f"{TOKENIZER} matches {token.content!r} loosely; only exact added tokens run here")
        self.added = {token.content: index for index, token in tokens.items()}
        self._hidden = frozenset(index for index, token in tokens.items() if token.special)
        alternatives = sorted(map(re.escape, self.added), key=len, reverse=True)
        self._whole = re.compile(f"({'|'.join(alternatives)})")
        self._starts = re.compile(f"[{''.join(re.escape(content[0]) for content in self.added)}]")
        # All added tokens are made special, so that `encode_special_tokens` encodes each as plain text.
        tokenizer.add_special_tokens([AddedToken(content, special=True, normalized=False) for content in self.added])
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
        # tokenizers 0.23 caches up to 10,000 words of users' texts for each thread and tokenizer, kilobytes each, and
        # leaks them when the tokenizer is freed. A question is encoded once, so a cache would not help.
        tokenizer.model._resize_cache(0)
        self._tokenizer = tokenizer

    @classmethod
    def open(cls, bundle: Bundle) -> Vocabulary:
        """The vocabulary of a bundle. Raises BundleError."""
        return cls.read(bundle.file(TOKENIZER).read_bytes())

    @classmethod
    def read(cls, content: bytes) -> Vocabulary:
        """The vocabulary in the `content` of a tokenizer.json. Raises BundleError."""
        try:
            tokenizer = Tokenizer.from_buffer(content)
        except Exception:  # tokenizers raises no narrower class
            raise BundleError(f"{TOKENIZER} does not read as a tokenizer") from None
        return cls(tokenizer)

    def guard(self, text: str) -> str:
        """`text` with every special token in it broken up by marks. Raises PromptError if it is not valid Unicode."""
        if MARK in text or any("\ud800" <= character <= "\udfff" for character in text):
            raise PromptError("the question has code points that are not characters; take them out")
        return self._starts.sub(rf"\g<0>{MARK}", text)

    def encode(self, guarded: str) -> tuple[int, ...]:
        """The ids of a text in which all users' text has passed `guard`."""
        ids: list[int] = []
        for index, piece in enumerate(self._whole.split(guarded)):
            if index % 2:
                ids.append(self.added[piece])
            else:
                ids.extend(self.encode_plain(piece.replace(MARK, "")))
        return tuple(ids)

    def encode_plain(self, text: str) -> tuple[int, ...]:
        """The ids of a text of which nothing is a special token."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def bytes_of(self, token: int) -> bytes:
        """The UTF-8 bytes of a token, which may be part of a character; empty for a special token."""
        content = None if token in self._hidden else self._tokenizer.id_to_token(token)
        if content is None:
            return b""
        try:
            return bytes(_BYTES[character] for character in content)
        except KeyError:  # an added token, which is not byte-encoded
            return content.encode()

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` without special tokens; invalid bytes become U+FFFD."""
        return b"".join(map(self.bytes_of, ids)).decode(errors="replace")


class StreamDecoder:
    """Decodes token by token: all results of `push` and `finish`, joined, equal `Vocabulary.decode` of all ids."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The characters that `token` completes; empty while bytes of one are missing."""
        return self._characters.decode(self._vocabulary.bytes_of(token))

    def finish(self) -> str:
        """The rest of the text: U+FFFD for an incomplete character, else nothing."""
        return self._characters.decode(b"", final=True)
