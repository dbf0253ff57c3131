"""Where a bundle's weights are from: what was pulled from a hub, and whose answers a drafter has learnt from."""

from __future__ import annotations

from typing import Annotated

import msgspec

Digest = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")]
_Said = Annotated[str, msgspec.Meta(max_length=200, pattern=r"^[\x20-\x7e]*\Z")]  # of a hub, and shown on terminals


class Learnt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a drafter has learnt from: so many `answers` of a target, from the journals of `tenants`.

    It was the drafter of the identity `drafter` before. `anew` says that what it learnt from was deleted since, so that
    another is to be made in its place.
    """

    drafter: Digest
    answers: Annotated[int, msgspec.Meta(ge=0)]
    tenants: tuple[_Said, ...]
    anew: bool = False


class ModelOrigin(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where weights were pulled from: the model's name on a hub, its commit, and the SHA-256 of each file of it.

    `revision` is what was asked for: a branch, a tag or a commit. All are empty where they were not pulled. `learnt` is
    what a drafter has learnt since, None where it has not.
    """

    hub: _Said = ""
    name: _Said = ""
    revision: _Said = ""
    commit: _Said = ""
    files: dict[_Said, Digest] = {}
    learnt: Learnt | None = None
