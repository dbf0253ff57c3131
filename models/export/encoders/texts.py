"""Reads the tokenizer of a dual encoder's folder, as transformers makes it of the folder.

The tokenizer of SigLIP 1 is one of the few that transformers runs on SentencePiece itself. Its folders have the same as
a tokenizer.json, which is taken as it is, once it was seen to leave out what SigLIP leaves out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from cutline.errors import BundleError, InputError
from cutline.models.encoders.tokenizer import TOKENIZER, TextRules, TextTokenizer
from cutline.models.export.folder import Settings, content_of, first_line, settings_of
from cutline.models.export.quiet import quiet
from cutline.models.export.settings import shown

SENTENCEPIECE = ("SiglipTokenizer", "SiglipTokenizerFast")
PADDING = "</s>"  # of SiglipTokenizer, where the folder does not say
PROBES = ("a cat sat", "A  Cat, sat!", "Größe: 3 (4)")  # the first two are one text to SigLIP 1


def read_texts(path: Path, kind: str, text: Any, said: Settings) -> tuple[bytes, TextRules]:
    """The tokenizer's content for the bundle and its rules, of a folder with the text tower's config `text`.

    `said` is its tokenizer_config.json. Raises InputError.
    """
    content = content_of(path / TOKENIZER)
    if content is None:
        raise InputError(f"{path} is not a Hugging Face folder that can be exported: it has no {TOKENIZER}")
    name = said.get("tokenizer_class") or ("SiglipTokenizer" if kind == "siglip" else "CLIPTokenizer")
    if name in SENTENCEPIECE:
        tokenizer, padding, side, longest = _plain(path, content, said)
    else:
        tokenizer, padding, side, longest = _made(path)
    length = min(text.max_position_embeddings, int(longest))
    if length < 2:
        raise InputError(f"{path} has model_max_length {longest}, where texts of two tokens and more are supported")
    if (last := max(tokenizer.get_vocab().values(), default=0)) >= text.vocab_size:
        raise InputError(f"{path} has a token {last} in {TOKENIZER}, and a text tower of {text.vocab_size} tokens")
    if kind == "clip":
        _check_end(path, tokenizer, text.eos_token_id)
        rules = TextRules(length=length)
    else:
        if padding is None:
            raise InputError(f"{path} has no pad_token in its tokenizer, with which SigLIP fills up every text")
        rules = TextRules(length=length, padding=padding, pads_left=side == "left")
    content = tokenizer.to_str().encode()
    try:
        for probe in PROBES:
            TextTokenizer.read(content, TextRules(length=8192)).encode(probe)
    except BundleError as error:
        raise InputError(f"{path} has no tokenizer that runs here: {error}") from None
    return content, rules


def _made(path: Path) -> tuple[Tokenizer, int | None, str, float]:
    """The tokenizer that transformers makes of the folder, its padding and the side of it, and its longest text."""
    try:
        with quiet():
            made = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers may raise anything on a tokenizer that it does not take
        raise InputError(f"the tokenizer of {path} does not read ({first_line(error)})") from None
    backend = getattr(made, "backend_tokenizer", None)
    if backend is None:
        raise InputError(f"{path} has tokenizer_class {shown(type(made).__name__)}, which is none of {TOKENIZER}'s")
    tokenizer = Tokenizer.from_str(backend.to_str())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, made.pad_token_id, made.padding_side, made.model_max_length


def _plain(path: Path, content: bytes, said: Settings) -> tuple[Tokenizer, int | None, str, float]:
    """As `_made`, of a folder of SigLIP 1."""
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception:  # tokenizers raises no narrower class
        raise InputError(f"{path / TOKENIZER} does not read as a tokenizer") from None
    first, second, _ = (tokenizer.encode(probe).ids for probe in PROBES)
    if first != second:
        raise InputError(f"{path / TOKENIZER} keeps capitals or punctuation, which SigLIP's texts are read without")
    special = {**(settings_of(path / "special_tokens_map.json") or {}), **said}.get("pad_token", PADDING)
    token = special.get("content") if isinstance(special, dict) else special
    return (
        tokenizer,
        tokenizer.token_to_id(str(token)),
        said.get("padding_side", "right"),
        said.get("model_max_length", 1e30),
    )


def _check_end(path: Path, tokenizer: Tokenizer, end: Any) -> None:
    """Check that the token whose row CLIP takes ends every text: its `end`, or in older folders the highest id."""
    last = tokenizer.encode(PROBES[0]).ids[-1]
    wanted = max(tokenizer.get_vocab().values()) if end == 2 else end
    if last != wanted:
        raise InputError(f"{path} has eos_token_id {shown(end)}, and a tokenizer that ends a text with {last}")
