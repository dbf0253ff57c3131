from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutline.errors import InputError
from cutline.protos.directory import (
    MAX_WORKERS,
    DirectoryClient,
    ListedWorker,
    Listing,
    Standing,
    listing_from_wire,
    listing_to_wire,
)
from cutline.protos.v1 import directory_pb2 as pb

words = st.text(max_size=20)
counts = st.integers(0, 2**32 - 1)
workers = st.builds(
    ListedWorker,
    name=words,
    address=st.integers(1, 65535).map(lambda port: f"192.0.2.1:{port}"),
    standing=st.sampled_from(Standing),
    since=st.floats(0.0, 1e12),
    model=words,
    start=words,
    end=words,
    queue_seconds=st.floats(0.0, 1e6),
    sessions=counts,
    max_sessions=counts,
    failures=counts,
    why=words,
)
listings = st.builds(
    Listing,
    epoch=words,
    version=st.integers(0, 2**64 - 1),
    wanted=counts,
    workers=st.lists(workers, max_size=5).map(tuple),
)
READY = ListedWorker(name="worker-0", address="192.0.2.1:1", standing=Standing.READY, since=0.0)


def crossed(listing: Listing) -> Listing:
    return listing_from_wire(pb.Listing.FromString(listing_to_wire(listing).SerializeToString()))


def listing(*some: ListedWorker) -> Listing:
    return Listing(epoch="e", version=1, wanted=1, workers=some)


@given(listings)
def test_a_listing_crosses_whole(one: Listing) -> None:
    assert crossed(one) == one


@pytest.mark.parametrize(
    "changes",
    [
        {"address": "192.0.2.1"},
        {"address": "unix:/run/x:1"},
        {"address": ""},
        {"queue_seconds": -1.0},
        {"queue_seconds": math.inf},
        {"queue_seconds": math.nan},
        {"since": math.nan},
    ],
)
def test_what_no_directory_says_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InputError):
        crossed(listing(replace(READY, **changes)))  # type: ignore[arg-type]


def test_who_has_no_address_yet_is_listed_without() -> None:
    starting = replace(READY, standing=Standing.STARTING, address="")
    assert crossed(listing(starting)).workers == (starting,)


def test_a_standing_of_a_newer_version_takes_no_sessions() -> None:
    told = listing_to_wire(listing(READY))
    told.workers[0].standing = 77  # type: ignore[assignment]
    assert listing_from_wire(told).workers[0].standing is Standing.RESTING


def test_a_listing_is_bounded() -> None:
    with pytest.raises(InputError, match="too many"):
        crossed(listing(*[READY] * (MAX_WORKERS + 1)))


def test_an_address_that_nobody_can_listen_at_is_refused() -> None:
    with pytest.raises(InputError, match="port 0"):
        DirectoryClient("127.0.0.1:0")
