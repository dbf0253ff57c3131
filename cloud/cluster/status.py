"""What an operator is told of a cluster while it runs. Pure functions of listings."""

from __future__ import annotations

from collections.abc import Iterator

from cutline.protos.directory import Listing, Standing


def changes(before: Listing | None, now: Listing) -> Iterator[str]:
    """A line for everything that is otherwise than `before`."""
    if before is not None and before.wanted != now.wanted:
        yield f"{now.wanted} workers are wanted, after {before.wanted}"
    known = {one.name: one for one in before.workers} if before is not None else {}
    for one in now.workers:
        was = known.pop(one.name, None)
        if was is None or (was.standing, was.address, was.why) != (one.standing, one.address, one.why):
            where = f" at {one.address}" if one.address else ""
            yield f"{one.name} is {one.standing}{where}" + (f": {one.why}" if one.why else "")
    for name in known:
        yield f"{name} has left"


def failing(listing: Listing) -> str | None:
    """Why workers that are to follow others do not start, once one has failed at it three times in a row."""
    return next((one.why for one in listing.workers if one.standing is Standing.RESTING and one.failures >= 3), None)


def hopeless(listing: Listing) -> str | None:
    """Why none starts, if all that are wanted failed at it and none was ever ready."""
    failed = [one for one in listing.workers if one.standing is Standing.RESTING and one.failures]
    return failed[0].why if failed and len(failed) == len(listing.workers) else None
