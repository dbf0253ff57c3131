"""How many sessions a worker has room for, how long, and how many images: pure arithmetic over free memory."""

from __future__ import annotations

from cutline.errors import InputError

MOST_SLOTS = 64  # by default: more gain nothing, a pass of so many rows is bound by its arithmetic
LEAST_SLOTS = 8  # by default, before sessions hold less than the model's own context
LEAST_CONTEXT = 2048  # tokens, by default: with less even one conversation about a picture does not fit
SHARE = 0.75  # of what is free, for keys and values
IMAGE_SHARE = 0.05  # for images that are kept; the rest is for passes


def slot_bytes(*, layers: int, kv_heads: int, head_dim: int, context: int, itemsize: int) -> int:
    """Bytes of one session's keys and values in `layers` decoder layers."""
    return 2 * layers * kv_heads * head_dim * context * itemsize


def context_that_fits(most: int, *, asked: int | None, token: int, free: int) -> int:
    """Tokens that a session may hold where none are asked for: `most`, the model's own, as memory permits.

    A token takes `token` bytes. Where `asked` sessions, or by default eight, of `most` tokens do not fit into `free`
    bytes, it is as many as leave room for those, in steps of 256; but 2048 or `most` at the least, with fewer sessions.
    """
    sessions = asked or LEAST_SLOTS
    if token * sessions * most <= free * SHARE:
        return most
    room = int(free * SHARE) // (token * sessions)
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
