"""Who looks on at a worker: told what happens, where it happens, and never asked anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cutline.cloud.telemetry.session_stats import Account
from cutline.protos.messages import Confirmed, Finished, Opened


class Observer:
    """Looks away: one that counts overrides what it wants. Called by the engine's thread and the event loop."""

    def serving(self, slots: int, in_use: Callable[[], int]) -> None:
        """A worker has room for so many sessions; `in_use` says, whenever it is asked, for how many it is taken."""

    def divided(self, pids: Sequence[int]) -> None:
        """A worker has several ranks, the processes `pids` from rank 0 on."""

    def hung(self) -> None:
        """A step of the engine does not end: no session is served any more."""

    def passed(self, rows: int, seconds: float) -> None:
        """A pass of so many `rows` took `seconds`."""

    def waited(self, seconds: float) -> None:
        """A session's first pass begins, so many `seconds` after the engine was asked for it."""

    def verified(self, drafted: int, right: int) -> None:
        """Of so many `drafted` tokens that a session had in a pass, the first `right` proved so."""

    def recalled(self, *, found: bool) -> None:
        """An image was looked for among those that are kept."""

    def keeping(self, held: int) -> None:
        """Images that are kept take so many bytes."""

    def reused(self, tokens: int) -> None:
        """A session began after so many tokens that an earlier one had left."""

    def evicted(self) -> None:
        """A session that waited for a draft lost its slot to another."""

    def talking(self, change: int) -> None:
        """So many more agents have a session's stream open."""

    def told(self, event: Opened | Confirmed | Finished) -> None:
        """An agent was told of its session."""

    def ended(self, account: Account) -> None:
        """A session's stream ended; nothing is added to its `account` any more."""

    def beyond(self, *, ready: bool, seconds: float) -> None:
        """The next worker of the chain was looked at, in so many `seconds`: sessions can go on there, or not."""

    def carried(self, *, up: int = 0, down: int = 0) -> None:
        """Bytes of messages came `up` from an agent or went `down` to it."""


NOBODY = Observer()


class Observers(Observer):
    """Several that look on at the same worker: each is told everything."""

    def __init__(self, *observers: Observer) -> None:
        for name in (name for name in vars(Observer) if not name.startswith("_")):
            setattr(self, name, _each([getattr(one, name) for one in observers]))


def _each(hear: Sequence[Callable[..., None]]) -> Callable[..., None]:
    def tell(*given: object, **named: object) -> None:
        for one in hear:
            one(*given, **named)

    return tell
