"""The table of pairs that `cutline pull PAIR` takes: `pairs.toml` beside this file."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

import msgspec

from cutline.errors import InputError


class ModelPair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A drafter and its target by their names on the hub; `terms` says that their maker's have to be accepted there."""

    drafter: str
    target: str
    terms: bool = False


def known_pairs() -> Mapping[str, ModelPair]:
    """The pairs by their names, in the table's order."""
    content = (Path(__file__).parent / "pairs.toml").read_bytes()
    return msgspec.toml.decode(content, type=dict[str, ModelPair])


def find_pair(name: str) -> ModelPair:
    """The pair of that name. Raises InputError, which names those that there are."""
    known = known_pairs()
    if (found := known.get(name)) is not None:
        return found
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? Known are" if near else "known are"
    raise InputError(f"{name[:80]!r} is no pair; {hint} {', '.join(known)}; a model has an owner: OWNER/NAME")
