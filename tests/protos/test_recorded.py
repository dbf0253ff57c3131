"""Messages as an earlier release wrote them, and its schema: both versions read what the other writes.

`recorded/VERSION.binpb` is its schema (a descriptor set of protoc), and `recorded/VERSION.json` has SAMPLES as
its code wrote them, in hex. They are never made anew; a new release adds its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

from cutline.core.sampling import Sampling
from cutline.core.wire import Wire
from cutline.errors import WorkerBusy, WorkerForgot
from cutline.protos import codec
from cutline.protos.directory import ListedWorker, Listing, Standing, listing_from_wire, listing_to_wire
from cutline.protos.messages import (
    Boundary,
    Cancel,
    Confirmed,
    Description,
    Draft,
    Finished,
    ImageChunk,
    Likelihood,
    Open,
    Opened,
    Reason,
)
from cutline.protos.v1 import directory_pb2, worker_pb2

RECORDED = Path(__file__).parent / "recorded"
VERSIONS = sorted(path.stem for path in RECORDED.glob("*.binpb"))

SAMPLES: dict[str, Any] = {
    "description": Description(
        model="a" * 64,
        name="target",
        version="0.1.0",
        vision_layers=2,
        decoder_layers=4,
        context=512,
        sessions=1,
        max_sessions=8,
        start="image",
        end="end",
        queue_seconds=0.25,
        draining=True,
        wires=(Wire.FLOAT32, Wire.INT8),
    ),
    "open": Open(
        model="a" * 64,
        tokens=(1, 5, 9),
        prompt_length=2,
        max_tokens=64,
        images=1,
        sampling=Sampling(temperature=0.5, top_k=3, top_p=0.75, seed=8),
        effort=0.5,
        draft=(7, 8),
        grids=((8, 8),),
        digests=(b"d" * 32,),
        known=0,
        likelihoods=True,
        alternatives=2,
    ),
    "image": ImageChunk(b"png", last=True),
    "boundary": Boundary(np.arange(8, dtype=np.float32).reshape(2, 4), last=False),
    "draft": Draft(5, (1, 2, 3)),
    "cancel": Cancel(),
    "opened": Opened("it", upload_seconds=0.5, prepare_seconds=0.25, queue_seconds=0.125, kept=True, reused=7),
    "confirmed": Confirmed(9, (4, 5), 1, (Likelihood(-0.5, ((4, -0.5),)), Likelihood(-1.0))),
    "finished": Finished(Reason.STOP, 3, 4, 1.5),
    "busy": WorkerBusy("full", retry_seconds=2.0),
    "forgot": WorkerForgot("open it anew"),
    "listing": Listing(
        epoch="e",
        version=3,
        wanted=2,
        workers=(
            ListedWorker(
                name="worker-0",
                address="127.0.0.1:1",
                standing=Standing.READY,
                since=5.0,
                model="a" * 64,
                start="image",
                end="end",
                queue_seconds=0.5,
                sessions=1,
                max_sessions=8,
            ),
        ),
    ),
}
AGENT = ("open", "image", "boundary", "draft", "cancel")


def to_wire(name: str) -> Any:
    sample = SAMPLES[name]
    if name == "description":
        return codec.description_to_wire(sample)
    if name == "listing":
        return listing_to_wire(sample)
    return codec.agent_to_wire(sample) if name in AGENT else codec.worker_to_wire(sample)


def from_wire(name: str, content: bytes) -> Any:
    if name == "description":
        return codec.description_from_wire(worker_pb2.Description.FromString(content))
    if name == "listing":
        return listing_from_wire(directory_pb2.Listing.FromString(content))
    if name in AGENT:
        return codec.agent_from_wire(worker_pb2.AgentMessage.FromString(content))
    return codec.worker_from_wire(worker_pb2.WorkerMessage.FromString(content))


def schema(version: str) -> descriptor_pb2.FileDescriptorSet:
    return descriptor_pb2.FileDescriptorSet.FromString((RECORDED / f"{version}.binpb").read_bytes())


def recorded(version: str) -> dict[str, bytes]:
    found: dict[str, str] = json.loads((RECORDED / f"{version}.json").read_text())
    return {name: bytes.fromhex(content) for name, content in found.items()}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", SAMPLES)
def test_what_it_wrote_is_read_as_it_was_meant(version: str, name: str) -> None:
    read, meant = from_wire(name, recorded(version)[name]), SAMPLES[name]
    if isinstance(meant, Boundary):
        np.testing.assert_array_equal(read.rows, meant.rows)
        assert (read.last, read.wire) == (meant.last, meant.wire)
    elif isinstance(meant, Exception):
        assert (type(read), str(read), vars(read)) == (type(meant), str(meant), vars(meant))
    else:
        assert read == meant


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", SAMPLES)
def test_it_reads_what_is_written_now_as_what_it_wrote_itself(version: str, name: str) -> None:
    """Through its own schema, which drops what it does not know."""
    pool = descriptor_pool.DescriptorPool()
    for file in schema(version).file:
        pool.Add(file)
    now = to_wire(name)
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName(now.DESCRIPTOR.full_name))
    theirs, ours = kind.FromString(recorded(version)[name]), kind.FromString(now.SerializeToString())
    assert json_format.MessageToDict(ours) == json_format.MessageToDict(theirs)


@pytest.mark.parametrize("version", VERSIONS)
def test_no_field_or_method_of_it_was_changed_or_taken_for_something_else(version: str) -> None:
    now = descriptor_pb2.FileDescriptorProto()
    fields, methods = dict[tuple[str, int], tuple[Any, ...]](), set[tuple[str, ...]]()
    for descriptor in (worker_pb2.DESCRIPTOR, directory_pb2.DESCRIPTOR):
        descriptor.CopyToProto(now)
        fields |= dict(_fields(now))
        methods |= set(_methods(now))
    for file in schema(version).file:
        for place, kind in _fields(file):
            assert fields.get(place) == kind, f"{place} was {kind}"
        assert set(_methods(file)) <= methods


def _fields(file: descriptor_pb2.FileDescriptorProto) -> Any:
    def walk(prefix: str, message: descriptor_pb2.DescriptorProto) -> Any:
        for field in message.field:
            yield (f"{prefix}.{message.name}", field.number), (field.name, field.type, field.label, field.type_name)
        for nested in message.nested_type:
            yield from walk(f"{prefix}.{message.name}", nested)

    for message in file.message_type:
        yield from walk(file.package, message)


def _methods(file: descriptor_pb2.FileDescriptorProto) -> Any:
    for service in file.service:
        for method in service.method:
            yield (
                f"{file.package}.{service.name}.{method.name}",
                method.input_type,
                method.output_type,
                f"{method.client_streaming} {method.server_streaming}",
            )
