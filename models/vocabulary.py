"""A bundle's tokenizer: text to token ids and back, with no way for a person's text to become a special token.

A person's text passes `guard`, which puts MARK after every character that could begin an added token such as `<image>`.
The template then renders around it, `encode` takes the added tokens that are still whole (the template's own), removes
the marks and encodes the rest as ordinary text. Text without specials thus gets the ids that encoding the rendered
prompt in one go would give: nothing is cut where the text meets the template.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders

from cutline.errors import BundleError, PromptError
from cutline.models.bundle import Bundle

TOKENIZER = "tokenizer.json"
MARK = "\ufdd0"  # a noncharacter: Unicode keeps it for use inside programs, so `guard` may refuse it


def _byte_characters() -> dict[str, int]:
    """The character that byte-level BPE writes each byte as: itself where printable, else one from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTES = _byte_characters()


class Vocabulary:
    """A byte-level BPE tokenizer and its added tokens. `added` maps each added token's text to its id."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises BundleError for a tokenizer whose added tokens or bytes work otherwise than this class assumes."""
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
        # All added tokens become special ones, so that `encode_special_tokens` reads every one of them as plain text.
        tokenizer.add_special_tokens([AddedToken(content, special=True, normalized=False) for content in self.added])
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
        # tokenizers 0.23 keeps up to 10,000 words for each thread and tokenizer, people's own and kilobytes each, and
        # lets none of them go when the tokenizer does. A question is encoded once, so nothing is gained by them.
        tokenizer.model._resize_cache(0)
        self._tokenizer = tokenizer

    @classmethod
    def open(cls, bundle: Bundle) -> Vocabulary:
        """The vocabulary of a bundle. Raises BundleError."""
        return cls.read(bundle.file(TOKENIZER).read_bytes())

    @classmethod
    def read(cls, content: bytes) -> Vocabulary:
        """The vocabulary that a tokenizer.json of this `content` has. Raises BundleError."""
        try:
            tokenizer = Tokenizer.from_buffer(content)
        except Exception:  # tokenizers raises no narrower class
            raise BundleError(f"{TOKENIZER} does not read as a tokenizer") from None
        return cls(tokenizer)

    def guard(self, text: str) -> str:
        """`text` with every special token in it broken by marks. Raises PromptError where it is not plain Unicode."""
        if MARK in text or any("\ud800" <= character <= "\udfff" for character in text):
            raise PromptError("the question has code points that are not characters; take them out")
        return self._starts.sub(rf"\g<0>{MARK}", text)

    def encode(self, guarded: str) -> tuple[int, ...]:
        """The ids of a text in which whatever came from a person has passed `guard`."""
        ids: list[int] = []
        for index, piece in enumerate(self._whole.split(guarded)):
            if index % 2:
                ids.append(self.added[piece])
            else:
                ids.extend(self._tokenizer.encode(piece.replace(MARK, ""), add_special_tokens=False).ids)
        return tuple(ids)

    def bytes_of(self, token: int) -> bytes:
        """The UTF-8 bytes that a token adds to a text, maybe part of a character; none for a special token."""
        content = None if token in self._hidden else self._tokenizer.id_to_token(token)
        if content is None:
            return b""
        try:
            return bytes(_BYTES[character] for character in content)
        except KeyError:  # an added token is written as it is
            return content.encode()

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, special tokens left out; bytes that are no character read as U+FFFD."""
        return b"".join(map(self.bytes_of, ids)).decode(errors="replace")


class StreamDecoder:
    """Text token by token: the pieces of all pushes and of `finish`, joined, equal `Vocabulary.decode` of all ids."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """The characters that `token` completes; empty while one is still missing bytes."""
        return self._characters.decode(self._vocabulary.bytes_of(token))

    def finish(self) -> str:
        """What the bytes still held read as: U+FFFD for a character cut short, otherwise nothing."""
        return self._characters.decode(b"", final=True)
