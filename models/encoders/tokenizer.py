"""How a text becomes a text tower's input: token ids, with the tokens that begin and end every text."""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from cutline.errors import BundleError, PromptError

TOKENIZER = "tokenizer.json"
MAX_CHARACTERS = 8192  # of a text, before it is encoded; a tower reads some 70 tokens

TokenId = Annotated[int, msgspec.Meta(ge=0, le=10**7)]


class TextRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A text has `length` tokens at most. With a `padding` token it is filled up to them, at the left if it says so.

    The tower's last row stands for the text: that of the token which ends every text, or of the padding.
    """

    length: Annotated[int, msgspec.Meta(ge=2, le=8192)]
    padding: TokenId | None = None
    pads_left: bool = False


class TextTokenizer:
    """An encoder's tokenizer. A user's text can never become a special token."""

    def __init__(self, tokenizer: Tokenizer, rules: TextRules) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # those in a text are plain text
        self._tokenizer = tokenizer
        self._rules = rules

    @classmethod
    def read(cls, content: bytes, rules: TextRules) -> TextTokenizer:
        """The tokenizer in the `content` of a tokenizer.json. Raises BundleError."""
        try:
            return cls(Tokenizer.from_buffer(content), rules)
        except Exception:  # tokenizers raises no narrower class
            raise BundleError(f"{TOKENIZER} does not read as a tokenizer") from None

    def encode(self, text: str) -> NDArray[np.int64]:
        """The ids (1, n) of a text. Raises PromptError if it is empty, no valid Unicode, or too long for the tower."""
        rules = self._rules
        if not text.strip():
            raise PromptError("the text is empty; say what to compare images with")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise PromptError("the text has code points that are not characters; take them out")
        if len(text) > MAX_CHARACTERS:
            raise PromptError(f"the text has {len(text)} characters, over {MAX_CHARACTERS}; shorten it")
        ids = self._tokenizer.encode(text).ids
        if len(ids) > rules.length:
            raise PromptError(
                f"the text {text[:40]!r} has {len(ids)} tokens, and the encoder reads {rules.length}; shorten it"
            )
        if rules.padding is not None:
            fill = [rules.padding] * (rules.length - len(ids))
            ids = [*fill, *ids] if rules.pads_left else [*ids, *fill]
        return np.array([ids], np.int64)
