"""Tokenizers of the kinds that models come with, trained on Cutline's own documentation in a second."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE

from cutline.models.vocabulary import Vocabulary

END = "<|end|>"
DOCS = Path(__file__).resolve().parents[2] / "docs"
# As GPT-4, Llama 3 and Qwen split: letters with one sign before them, digits by themselves, signs with line ends.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,%d}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@cache
def vocabulary(kind: str) -> Vocabulary:
    """A small vocabulary of one of the KINDS."""
    return Vocabulary(KINDS[kind]())


def of_pieces(special: Sequence[str]) -> Tokenizer:
    """A tokenizer like Gemma's: pieces of text with `▁` for a space, bytes for other characters, runs of white space.

    It has the `special` tokens of a family, and those about pads, texts and turns.
    """
    marks = ("<pad>", "<eos>", "<bos>", "<unk>", *special, "<start_of_turn>", "<end_of_turn>")
    letters = [chr(code) for code in range(33, 127)]
    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("▁", "a"), ("▁", "the"), ("o", "u"), ("▁", "▁")]
    words = [
        *marks,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "\n",
        *letters,
        *("".join(one) for one in merges),
    ]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens([AddedToken(white, normalized=False) for white in ("\n\n", "\n\n\n", "▁▁▁")])
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    return tokenizer


def _bytewise(size: int, digits: int | None, *, normalizer: normalizers.Normalizer | None = None) -> Tokenizer:
    """Byte-level BPE: split as GPT-2 does, or with so many digits in a token."""
    tokenizer = Tokenizer(BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=False)
        if digits is None
        else pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(WORDS % digits), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    )
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, size, pre_tokenizers.ByteLevel.alphabet())


def _pieces(size: int) -> Tokenizer:
    """BPE like SentencePiece's, whose tokens may have a space anywhere, with bytes for what it lacks."""
    tokenizer = Tokenizer(BPE(byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    settings = json.loads(_trained(tokenizer, size, []).to_str())
    words = settings["model"]["vocab"]
    words |= {f"<0x{byte:02X}>": len(words) + byte for byte in range(256)}
    return Tokenizer.from_str(json.dumps(settings))


def _trained(tokenizer: Tokenizer, size: int, alphabet: list[str]) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=alphabet,
        special_tokens=[AddedToken(END, special=True, normalized=False)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(file.read_text() for file in DOCS.rglob("*.md")), trainer)
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": lambda: _bytewise(1500, None),
    "llama3": lambda: _bytewise(3000, 3),
    "qwen": lambda: _bytewise(2500, 1, normalizer=normalizers.NFC()),
    "gemma": lambda: _pieces(2000),
}
