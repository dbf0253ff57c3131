"""A bundle's tokenizer: text to token ids and back. A user's text can never become a special token.

Three kinds run: byte-level BPE; BPE like SentencePiece's, with `▁` for a space and bytes for characters it lacks; and
WordPiece, as BERT has it, which splits at spaces: what it says has one before each word, and none before full stops.

`guard` puts MARK after every character of a user's text that could begin an added token such as `<image>`. After the
template is rendered, `encode` splits at the added tokens that are still intact, which are the template's own, removes
the marks, and encodes the rest as ordinary text. So a text without special tokens gets the same ids as if the rendered
prompt were encoded at once; there is no split where the text meets the template.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import BPE, WordPiece

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
_SPACE = "▁"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_PIECES = [
    {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
_WITHIN = "##"  # begins a piece that goes on with a word
_ATTACHED = frozenset(".,!?")  # written without a space before
_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}


class Vocabulary:
    """A tokenizer and its added tokens. `added` maps the text of each that a user's text must not become to its id.

    Those of white space alone, which Gemma has hundreds of, are text like any other. One that `normalizes` may write a
    text otherwise than it was. One `of_words` cannot write every text: it has neither bytes nor spaces.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Raises BundleError for a tokenizer of another kind, or with added tokens that match loosely."""
        self._bytewise = isinstance(tokenizer.decoder, decoders.ByteLevel)
        self.of_words = _is_of_words(tokenizer)
        if not self._bytewise and not self.of_words and not _is_of_pieces(tokenizer):
            raise BundleError(
                f"{TOKENIZER} is neither byte-level BPE, nor BPE like SentencePiece's, nor WordPiece as BERT has it; "
                "no other kind runs here"
            )
        every = tokenizer.get_added_tokens_decoder()
        tokens = {index: token for index, token in every.items() if token.content.replace(_SPACE, " ").strip()}
        if not tokens:
            raise BundleError(f"{TOKENIZER} has no special tokens, so no prompt can be told from its text")
        for token in tokens.values():
            if token.lstrip or token.rstrip or token.single_word or token.normalized or len(token.content) < 2:
                raise BundleError(f"{TOKENIZER} matches {token.content!r} loosely; only exact added tokens run here")
        self.added = {token.content: index for index, token in tokens.items()}
        self._hidden = frozenset(index for index, token in every.items() if token.special)
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
        if isinstance(tokenizer.model, BPE):
            tokenizer.model._resize_cache(0)
        self.normalizes = tokenizer.normalizer is not None
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
        if self.of_words:
            if content.startswith(_WITHIN):
                return content.removeprefix(_WITHIN).encode()
            return (content if content in _ATTACHED else f" {content}").encode()
        if not self._bytewise:
            if (byte := _BYTE.fullmatch(content)) is not None:
                return bytes.fromhex(byte[1])
            return content.replace(_SPACE, " ").encode()
        try:
            return bytes(_BYTES[character] for character in content)
        except KeyError:  # an added token, which is not byte-encoded
            return content.encode()

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` without special tokens; invalid bytes become U+FFFD."""
        return b"".join(map(self.bytes_of, ids)).decode(errors="replace")


def _is_of_pieces(tokenizer: Tokenizer) -> bool:
    """Whether it is BPE like SentencePiece's, that puts nothing in front of a text."""
    decoder, normalizer = tokenizer.decoder, tokenizer.normalizer
    if decoder is None or normalizer is None or not isinstance(tokenizer.model, BPE):
        return False
    # The state of these objects is what tokenizer.json says of them.
    states = [json.loads(one.__getstate__()) for one in (decoder, normalizer)]
    return states == [{"type": "Sequence", "decoders": _PIECES}, _SPACES] and tokenizer.model.byte_fallback


def _is_of_words(tokenizer: Tokenizer) -> bool:
    """Whether it is WordPiece as BERT has it."""
    words = isinstance(tokenizer.model, WordPiece) and tokenizer.model.continuing_subword_prefix == _WITHIN
    return words and isinstance(tokenizer.decoder, decoders.WordPiece)


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
