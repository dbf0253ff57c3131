"""What came after the protocol's first version has a name, and nothing that needs it goes to who does not know it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from cutline.core.sampling import Sampling
from cutline.errors import VersionMismatch
from cutline.protos import features
from cutline.protos.codec import agent_from_wire, agent_to_wire, lacking
from cutline.protos.messages import Open
from cutline.protos.v1 import worker_pb2 as pb

# The last field of each, in the first version; those of `Bias` and `Constraint` came with later fields of `Sampling`.
FIRST = {"Open": 14, "Sampling": 4, "Grid": 2, "Bias": 2, "Constraint": 2}
OPENING = Open(model="m", tokens=(1, 2), prompt_length=2, max_tokens=8)


def messages(descriptor: Any) -> Iterator[Any]:
    yield descriptor
    for field in descriptor.fields:
        if field.message_type is not None:
            yield from messages(field.message_type)


def test_every_later_field_of_an_opening_is_a_feature_or_said_to_change_nothing() -> None:
    found = {one.name: one for one in messages(pb.Open.DESCRIPTOR)}
    assert set(found) == set(FIRST)
    later = {
        f"{name}.{field.name}" for name, one in found.items() for field in one.fields if field.number > FIRST[name]
    }
    assert later <= set(features.LATER)


@pytest.mark.parametrize(
    ("field", "opening"),
    [
        ("Open.likelihoods", replace(OPENING, likelihoods=True)),
        ("Sampling.top_k", replace(OPENING, sampling=Sampling(top_k=3))),
        ("Grid.rows", replace(OPENING, grids=((1, 0),))),
    ],
)
def test_an_opening_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, field: str, opening: Open) -> None:
    monkeypatch.setattr(features, "LATER", {field: "new", "Open.effort": None})
    assert agent_to_wire(OPENING).open.requires == []
    assert agent_to_wire(opening).open.requires == ["new"]
    assert features.understood() == ("new",)
    assert lacking(opening, ()) == ("new",)
    assert lacking(opening, ("new", "newer")) == ()
    assert agent_from_wire(agent_to_wire(opening)) == opening


def test_a_worker_refuses_what_it_does_not_understand_and_blames_no_client() -> None:
    wire = agent_to_wire(OPENING)
    wire.open.requires.extend(["of-the-future"])
    with pytest.raises(VersionMismatch, match="does not understand 'of-the-future'"):
        agent_from_wire(wire)


@pytest.mark.parametrize(
    "unknown", [b"\xfa\x01\x00", pb.AgentMessage(boundary=pb.Boundary(rows=pb.Tensor(shape=[1, 1])))], ids=str
)
def test_a_newer_message_is_not_the_clients_fault(unknown: bytes | pb.AgentMessage) -> None:
    message = pb.AgentMessage.FromString(unknown) if isinstance(unknown, bytes) else unknown
    if not isinstance(unknown, bytes):
        message.boundary.rows.ParseFromString(message.boundary.rows.SerializeToString() + b"\x08\x63")  # type 99
    with pytest.raises(VersionMismatch):
        agent_from_wire(message)


def test_a_worker_that_sums_shares_of_probability_otherwise_is_not_asked_to() -> None:
    assert agent_to_wire(OPENING).open.requires == []
    asked = replace(OPENING, sampling=Sampling(temperature=1.0, top_p=0.9))
    assert agent_to_wire(asked).open.requires == ["sampling.top_p.fixed_point"]
    assert "sampling.top_p.fixed_point" in features.understood()
