"""What the router asks: whoever can append to a generation, one of several that know nothing of each other."""

from __future__ import annotations

from typing import Protocol

from cutline.edge.generation.generation import Generation
from cutline.errors import AccessDenied, ModelMismatch, PromptError, VersionMismatch


class NoRoom(PromptError):
    """A worker's context has no room for a request and what is answered so far; another's may have."""


REFUSALS = ModelMismatch | AccessDenied | VersionMismatch | NoRoom  # by one that asking again changes nothing of


class RemoteSession(Protocol):
    """What was said over a network for one request, with whom: `bytes_up` and `bytes_down` count it.

    `passes` are those of a model, as far as is known. Once anything came it was `answered`; it was `heard` of last
    then, on the monotonic clock.
    """

    address: str
    bytes_up: int
    bytes_down: int
    passes: int
    answered: bool
    heard: float


class Backend(Protocol):
    """Who may answer one request, by itself or from where others have left off.

    `address` says who that is, None for this device alone; `session` what was said with it, None where nothing was.
    What it appends is `exact`ly the target's own, or not, or nobody can tell.
    """

    @property
    def address(self) -> str | None: ...

    @property
    def exact(self) -> bool | None: ...

    @property
    def session(self) -> RemoteSession | None: ...

    async def extend(self, generation: Generation) -> None:
        """Go on from what the generation has, and append to it until it is complete.

        Raises one of REFUSALS where it does not take the request, another WorkerError where it was lost, whatever it
        had appended; InputError for what nobody like it will take.
        """
