"""Names of protocol features that were added after the first version.

proto3 silently drops a field that a peer does not know: a worker would ignore an option and still call its answer
exact. So each later field of an opening that changes an answer is a feature. A worker lists the features that it
understands, and an opening those that it requires.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from cutline.core.constraint import dialect
from cutline.protos.v1 import worker_pb2 as pb

CONSTRAINT = "sampling.constraint"
# A worker that sums shares of probability otherwise may draw another token: it lacks this one.
TOP_P = "sampling.top_p.fixed_point"
NEUTRAL = {"Sampling.top_p": 1.0}  # values that change no answer, of fields whose values are always sent
FIRST_SAMPLING = 4  # number of the last field of `Sampling` in the first version; every later one changes an answer

# The fields of `Open` and of its sub-messages that were added after the first version, or mean something else since, as
# "Message.field". Each maps to its feature, or to None if a worker that ignores the field gives the same answer.
LATER: Mapping[str, str | None] = {
    "Open.requires": None,
    "Open.priority": None,
    "Open.request_id": None,
    "Open.store": None,
    "Open.pieces": "video.pieces",
    "Open.times": "video.times",
    "Sampling.top_p": TOP_P,
    **{
        f"Sampling.{field.name}": f"sampling.{field.name}"
        for field in pb.Sampling.DESCRIPTOR.fields
        if field.number > FIRST_SAMPLING
    },
}


def understood() -> tuple[str, ...]:
    """The features that this version understands."""
    return tuple(sorted({_named(feature) for feature in LATER.values() if feature is not None}))


def required(message: Any) -> tuple[str, ...]:
    """The features that a peer needs to understand all of a protobuf `message`."""
    found = set[str]()
    for field, value in message.ListFields():
        name = f"{message.DESCRIPTOR.name}.{field.name}"
        feature = LATER.get(name)
        if feature is not None and value != NEUTRAL.get(name):
            found.add(_named(feature))
        if field.message_type is not None:
            for part in value if field.is_repeated else (value,):
                found.update(required(part))
    return tuple(sorted(found))


def _named(feature: str) -> str:
    """The feature's whole name. A worker that compiles constraints otherwise allows other tokens: it lacks this one."""
    return f"{feature}.{dialect()}" if feature == CONSTRAINT else feature


def missing(needed: Collection[str], has: Collection[str]) -> tuple[str, ...]:
    """The features `needed` that a peer with the features `has` lacks."""
    return tuple(sorted(set(needed) - set(has)))
