"""How many sessions a worker has room for: pure arithmetic over the memory that is free and a session's share of it."""

from __future__ import annotations

from cutline.errors import InputError

MOST_SLOTS = 64  # by default: more gain nothing, a pass of so many rows is bound by its arithmetic
SHARE = 0.8  # of what is free; the rest is for passes and images


def slot_bytes(*, layers: int, kv_heads: int, head_dim: int, context: int, itemsize: int) -> int:
    """Bytes of one session's keys and values in `layers` decoder layers."""
    return 2 * layers * kv_heads * head_dim * context * itemsize


def slots_that_fit(asked: int | None, *, slot: int, free: int) -> int:
    """So many slots of `slot` bytes as are `asked` for, or, by default, as fit into `free` bytes. Raises InputError."""
    room = MOST_SLOTS if slot == 0 else int(free * SHARE) // slot
    if room < (asked or 1):
        raise InputError(
            f"{asked or 1} sessions need {_mib((asked or 1) * slot)} MiB of keys and values, {_mib(free * SHARE)} MiB "
            f"can be had; give a smaller --context{' or --max-sessions' if room and asked else ''}"
        )
    return asked or min(room, MOST_SLOTS)


def _mib(count: float) -> str:
    return f"{count / (1 << 20):,.0f}"
