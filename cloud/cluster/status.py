"""Messages about a running cluster for its operator. Pure functions of listings."""

from __future__ import annotations

from collections.abc import Iterator

from cutline.protos.directory import Listing, Standing


def changes(before: Listing | None, now: Listing) -> Iterator[str]:
    """One line for each change since the listing `before`."""
    if before is not None and before.wanted != now.wanted:
        yield f"{now.wanted} workers are wanted, after {before.wanted}"
    known = {worker.name: worker for worker in before.workers} if before is not None else {}
    for worker in now.workers:
        old = known.pop(worker.name, None)
        if old is None or (old.standing, old.address, old.why) != (worker.standing, worker.address, worker.why):
            where = f" at {worker.address}" if worker.address else ""
            yield f"{worker.name} is {worker.standing}{where}" + (f": {worker.why}" if worker.why else "")
    for name in known:
        yield f"{name} has left"


def failing(listing: Listing) -> str | None:
    """Why a worker does not start, once one has failed three times in a row; else None."""
    resting = (worker for worker in listing.workers if worker.standing is Standing.RESTING)
    return next((worker.why for worker in resting if worker.failures >= 3), None)


def hopeless(listing: Listing) -> str | None:
    """Why no worker starts, if all of them failed; else None."""
    failed = [worker for worker in listing.workers if worker.standing is Standing.RESTING and worker.failures]
    return failed[0].why if failed and len(failed) == len(listing.workers) else None
