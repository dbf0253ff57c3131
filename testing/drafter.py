"""A drafter that drafts what a test says, in place of or on top of what its model would."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutline.edge.inference.drafter import Drafted, Drafter, DrafterModel, DraftSource
from cutline.models.bundle import Bundle

Script = Callable[[DraftSource, Sequence[int], int], Iterator[Drafted]]


class ScriptedDrafter:
    """What opens drafters that follow a `script`: `AgentSettings(open_drafter=ScriptedDrafter(script))`.

    The script gets what the model would draft with, the answer so far and how many tokens are wanted. It may be changed
    at any time; without one the model's own drafts are given.
    """

    def __init__(self, script: Script | None = None) -> None:
        self.script = script

    def __call__(self, bundle: Bundle, *, threads: int, provider: str) -> DrafterModel:
        """Load the bundle's drafter. Raises InputError, BundleError."""
        return _Follower(Drafter.open(bundle, threads=threads, provider=provider), self)


class _Follower:
    """A loaded drafter whose conversations follow the script."""

    def __init__(self, drafter: Drafter, scripted: ScriptedDrafter) -> None:
        self._drafter, self._scripted = drafter, scripted

    def converse(self, *given: Any, **how: Any) -> DraftSource:
        return _Conversation(self._drafter.converse(*given, **how), self._scripted)


class _Conversation:
    """A conversation that follows the script, whatever that is when a draft is wanted."""

    def __init__(self, honest: DraftSource, scripted: ScriptedDrafter) -> None:
        self._honest, self._scripted = honest, scripted

    def draft(self, answer: Sequence[int], limit: int) -> Iterator[Drafted]:
        script = self._scripted.script
        return self._honest.draft(answer, limit) if script is None else script(self._honest, answer, limit)

    def pooled(self) -> list[NDArray[np.float32]]:
        return self._honest.pooled()
