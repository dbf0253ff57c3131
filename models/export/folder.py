"""Reads files of a Hugging Face folder, with errors of one line that name the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from cutline.core.json_errors import UNREADABLE
from cutline.errors import InputError
from cutline.models.prompt import TEMPLATE
from cutline.models.vocabulary import TOKENIZER

Settings = dict[str, Any]

CONFIG, GENERATION = "config.json", "generation_config.json"
PROCESSOR, IMAGES, TOKENS = "processor_config.json", "preprocessor_config.json", "tokenizer_config.json"
VIDEOS = "video_preprocessor_config.json"

_POINTER = b"version https://git-lfs.github.com/spec/"


def content_of(path: Path) -> bytes | None:
    """The content of the file at `path`, None if there is none. Raises InputError if it is empty or a pointer."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None
    if not content.strip():
        raise InputError(f"{path} is empty; fetch the folder again")
    refuse_pointer(path)
    return content


def refuse_pointer(path: Path) -> None:
    """Raises InputError if the file is a Git LFS pointer."""
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise InputError(f"{path} is a pointer of Git LFS and not the file itself; fetch it (git lfs pull)")


def settings_of(path: Path) -> Settings | None:
    """The object in the JSON file at `path` without its null values; None if there is no file.

    Raises InputError.
    """
    content = content_of(path)
    if content is None:
        return None
    try:
        settings = msgspec.json.decode(content, type=Settings)
    except UNREADABLE as error:
        raise InputError(f"{path} does not read as a JSON object ({error})") from None
    return {key: value for key, value in settings.items() if value is not None}


def tokenizer_of(path: Path) -> bytes:
    """The tokenizer's file. Raises InputError."""
    content = content_of(path / TOKENIZER)
    if content is None:
        raise InputError(f"{path} is not a Hugging Face folder that can be exported: it has no {TOKENIZER}")
    return content


def template_of(path: Path, usual: str | None, said: Mapping[str, Settings]) -> bytes:
    """The chat template, or a family's `usual` one, with the tokens that it names.

    The token of a prompt's beginning must be among them, or in it, if there must be one.
    Raises InputError.
    """
    template = _found_template(path, usual, said)
    named = {name: said[TOKENS].get(name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    tokens = {name: token.get("content") if isinstance(token, dict) else token for name, token in named.items()}
    begins = str(tokens["bos_token"]).encode()
    if said[TOKENS].get("add_bos_token") and b"bos_token" not in template and begins not in template:
        raise InputError(f"{path} has add_bos_token true in {TOKENS}, and a chat template without {begins.decode()}")
    known = {name: token for name, token in tokens.items() if token is not None and name.encode() in template}
    settings = "".join(f"{{% set {name} = {json.dumps(token)} %}}" for name, token in known.items())
    return settings.encode() + template


def _found_template(path: Path, usual: str | None, said: Mapping[str, Settings]) -> bytes:
    """The chat template, from the first file that has it, in transformers' order; else the `usual` one.

    Raises InputError.
    """
    older = settings_of(path / "chat_template.json") or {}
    files = {PROCESSOR: said[PROCESSOR], "chat_template.json": older, TEMPLATE: None, TOKENS: said[TOKENS]}
    for name, settings in files.items():
        if settings is None:
            if (content := content_of(path / name)) is not None:
                return content
        elif (template := settings.get("chat_template")) is not None:
            if not isinstance(template, str):
                raise InputError(f"the chat template in {path / name} does not read: one text is supported")
            return template.encode()
    if usual is not None:
        return usual.encode()
    raise InputError(f"{path} is not a Hugging Face folder that can be exported: it has no {TEMPLATE}")


def first_line(error: Exception) -> str:
    """The first paragraph of a library's error, on one line of at most 160 characters."""
    return " ".join(str(error).partition("\n\n")[0].split())[:160] or type(error).__name__
