"""What a worker has to understand beyond the protocol's first fields, by name.

proto3 drops a field that a peer does not know, without a word: a worker would leave out what an agent asked for, and
call its answer exact. So a field of an opening that came later and changes an answer is a feature. A worker describes
those that it understands, and an opening says those that it needs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from cutline.protos.v1 import worker_pb2 as pb

FIRST_SAMPLING = 4  # the last field of `Sampling` in the protocol's first version; every later one changes an answer

# The fields of `Open`, and of the messages in it, that came after the protocol's first version, as "Message.field".
# Each has its feature's name, or None where a worker that overlooks it gives the same answer.
LATER: Mapping[str, str | None] = {
    "Open.requires": None,
    "Open.request_id": None,
    **{
        f"Sampling.{field.name}": f"sampling.{field.name}"
        for field in pb.Sampling.DESCRIPTOR.fields
        if field.number > FIRST_SAMPLING
    },
}


def understood() -> tuple[str, ...]:
    """The features that this version understands."""
    return tuple(sorted({feature for feature in LATER.values() if feature is not None}))


def required(message: Any) -> tuple[str, ...]:
    """The features without which a peer would overlook something in a protobuf `message`."""
    found = set[str]()
    for field, value in message.ListFields():
        feature = LATER.get(f"{message.DESCRIPTOR.name}.{field.name}")
        if feature is not None:
            found.add(feature)
        if field.message_type is not None:
            for part in value if field.is_repeated else (value,):
                found.update(required(part))
    return tuple(sorted(found))


def missing(needed: Collection[str], has: Collection[str]) -> tuple[str, ...]:
    """Those of the features `needed` that are not among what a peer `has`."""
    return tuple(sorted(set(needed) - set(has)))
