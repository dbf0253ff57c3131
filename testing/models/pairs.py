"""A pair unlike in its tokens: the demo's target with its vocabulary numbered otherwise, and the demo's drafter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from cutline.models.bundle import EMBEDDINGS, MANIFEST, Bundle, write_manifest
from cutline.models.pairs.pair import target_files
from cutline.models.vocabulary import TOKENIZER

WEIGHTS, CONFIG = "model.safetensors", "config.json"
TABLE = "model.text_model.embed_tokens.weight"


def renumbered(target: Bundle, out: Path, *, seed: int = 0) -> Bundle:
    """A copy of the demo's `target` at `out` that answers the same text in tokens of other numbers."""
    shutil.copytree(target.path, out)
    count = target.manifest.decoder.vocabulary
    new = np.random.default_rng(seed).permutation(count).tolist()
    old = torch.tensor(np.argsort(new))
    for name in (WEIGHTS, EMBEDDINGS):
        tensors = load_file(out / name)
        tensors = {key: one[old].contiguous() if len(one) == count else one for key, one in tensors.items()}
        save_file(tensors, out / name, metadata={"format": "pt"})
    for name in (TOKENIZER, CONFIG):
        (out / name).write_text(json.dumps(_numbered(json.loads((out / name).read_text()), new)))
    manifest = target.manifest
    write_manifest(
        out,
        msgspec.structs.replace(
            manifest,
            name="renumbered",
            stop_tokens=tuple(new[token] for token in manifest.stop_tokens),
            image_token=new[manifest.image_token],
        ),
    )
    return Bundle.open(out)


def unlike(drafter: Bundle, target: Bundle, out: Path, **changes: Any) -> Bundle:
    """A copy of a `drafter` at `out` for a `target` that it is unlike, with changes to its manifest."""
    shutil.copytree(drafter.path, out)
    (out / MANIFEST).unlink()
    for name, content in target_files(target).items():
        (out / name).write_bytes(content)
    write_manifest(out, msgspec.structs.replace(drafter.manifest, target=target.manifest.identity, **changes))
    return Bundle.open(out)


def _numbered(value: Any, new: list[int]) -> Any:
    """Settings with their tokens numbered anew: the vocabulary, the added tokens, and what ends in token_id."""
    match value:
        case {"vocab": dict(vocab), **rest}:
            return rest | {"vocab": {word: new[token] for word, token in vocab.items()}}
        case {"added_tokens": list(added), **rest}:
            return {name: _numbered(one, new) for name, one in rest.items()} | {
                "added_tokens": sorted((one | {"id": new[one["id"]]} for one in added), key=lambda one: int(one["id"]))
            }
        case Mapping():
            return {
                name: new[one] if name.endswith("token_id") and isinstance(one, int) else _numbered(one, new)
                for name, one in value.items()
            }
        case _:
            return value
