"""The observer interface of a worker: callbacks for what happens in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cutline.cloud.telemetry.answered_session import AnsweredSession
from cutline.cloud.telemetry.session_stats import Account
from cutline.protos.messages import Confirmed, Finished, Opened


class Observer:
    """Does nothing; subclasses override the events they need. Called by the engine's thread and the event loop."""

    def serving(self, slots: int, in_use: Callable[[], int]) -> None:
        """The worker serves, with so many `slots`; `in_use` returns the number of taken ones at any time."""

    def divided(self, pids: Sequence[int]) -> None:
        """The worker has several ranks; `pids` are their processes in order of rank."""

    def hung(self) -> None:
        """A step of the engine hangs: no session is served any more."""

    def passed(self, rows: int, seconds: float) -> None:
        """A forward pass of `rows` rows took `seconds`."""

    def waited(self, seconds: float) -> None:
        """A session's first pass begins, after `seconds` in the engine's queue."""

    def verified(self, drafted: int, right: int) -> None:
        """A pass verified `drafted` tokens of a session and accepted the first `right`."""

    def recalled(self, *, found: bool) -> None:
        """An image was looked up in the image cache."""

    def keeping(self, held: int) -> None:
        """The image cache holds so many bytes."""

    def reused(self, tokens: int) -> None:
        """A session reused the KV cache of so many tokens."""

    def evicted(self) -> None:
        """A session that waited for a draft lost its slot to another."""

    def talking(self, change: int) -> None:
        """The number of open session streams changed by `change`."""

    def told(self, event: Opened | Confirmed | Finished) -> None:
        """An event of a session was sent to its agent."""

    def answered(self, session: AnsweredSession) -> None:
        """A session's answer is complete, and may be kept."""

    def ended(self, account: Account) -> None:
        """A session's stream ended; its `account` is final."""

    def beyond(self, *, ready: bool, seconds: float) -> None:
        """The next worker of the chain was checked in `seconds`, and is `ready` for sessions or not."""

    def carried(self, *, up: int = 0, down: int = 0) -> None:
        """Bytes of messages came `up` from an agent, or went `down` to one."""


NOBODY = Observer()


class Observers(Observer):
    """Several observers of one worker: each gets every event."""

    def __init__(self, *observers: Observer) -> None:
        for name in (name for name in vars(Observer) if not name.startswith("_")):
            setattr(self, name, _call_each([getattr(observer, name) for observer in observers]))


def _call_each(callbacks: Sequence[Callable[..., None]]) -> Callable[..., None]:
    def emit(*args: object, **kwargs: object) -> None:
        for callback in callbacks:
            callback(*args, **kwargs)

    return emit
