"""How many sessions a worker has room for, how long, and how many images: pure arithmetic over free memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from cutline.errors import InputError
from cutline.models.families.layer_state import CrossKeys, KeysValues, LayerState, RecentRows, SharedKeys

MOST_SLOTS = 64  # by default: more gain nothing, a pass of so many rows is bound by its arithmetic
LEAST_SLOTS = 8  # by default, before sessions hold less than the model's own context
LEAST_CONTEXT = 2048  # tokens, by default: with less even one conversation about a picture does not fit
SHARE = 0.75  # of what is free, for keys and values
IMAGE_SHARE = 0.05  # for images that are kept; the rest is for passes
MOST_DRAFTED = 32  # rows of a draft in a pass, where what moves states on is kept of each


class SlotSize(NamedTuple):
    """Bytes of one session: `token` for each that it may hold, and `fixed` ones."""

    token: int
    fixed: int


def slot_size(keeps: Sequence[LayerState], *, kv_heads: int, head_dim: int, itemsize: int) -> SlotSize:
    """What layers that keep so much of a session take, in values of `itemsize` bytes.

    Of states there are those before a pass and those after it, both with the drafted rows behind them.
    """
    token = fixed = 0
    for kept in keeps:
        match kept:
            case KeysValues():
                token += 2 * math.prod(kept.sizes(kv_heads, head_dim)) * itemsize
            case SharedKeys():
                pass
            case RecentRows(width):
                token += width * itemsize
            case CrossKeys(rows):
                fixed += 2 * rows * kv_heads * head_dim * itemsize
            case _:
                fixed += 2 * (kept.bytes + MOST_DRAFTED * kept.width * itemsize)
    return SlotSize(token, fixed)


def context_that_fits(most: int, *, asked: int | None, size: SlotSize, free: int) -> int:
    """Tokens that a session may hold where none are asked for: `most`, the model's own, as memory permits.

    A session is of `size`. Where `asked` sessions, or by default eight, of `most` tokens do not fit into `free`
    bytes, it is as many as leave room for those, in steps of 256; but 2048 or `most` at the least, with fewer sessions.
    """
    sessions = asked or LEAST_SLOTS
    room = int(free * SHARE) // sessions - size.fixed
    if size.token * most <= room:
        return most
    room = max(0, room) // size.token
    return min(most, max(LEAST_CONTEXT, room // 256 * 256))


def slots_that_fit(asked: int | None, *, slot: int, free: int) -> int:
    """So many slots of `slot` bytes as are `asked` for, or, by default, as fit into `free` bytes. Raises InputError."""
    room = MOST_SLOTS if slot == 0 else int(free * SHARE) // slot
    count = asked or 1
    if room < count:
        need = f"1 session needs {_mib(slot)}" if count == 1 else f"{count} sessions need {_mib(count * slot)}"
        fewer = f"--max-sessions {room} or " if room else ""
        raise InputError(
            f"{need} MiB of keys and values, {_mib(free * SHARE)} MiB can be had; give {fewer}a smaller --context"
        )
    return asked or min(room, MOST_SLOTS)


def image_room(asked: int | None, *, free: int) -> int:
    """Bytes for images that are kept: those `asked` for, or by default a share of what is free. Raises InputError."""
    most = int(free * (1 - SHARE))
    if asked is not None and asked > most:
        raise InputError(f"--image-cache {asked} is over the {most} bytes that can be had; give a smaller one")
    return int(free * IMAGE_SHARE) if asked is None else asked


def _mib(count: float) -> str:
    return f"{count / (1 << 20):,.0f}"
