"""How an answer came about: which backends were asked for it, who was lost, and what the drafter did alone."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import msgspec

from cutline.core.agreement.measures import Wording
from cutline.edge.generation.generation import Generation
from cutline.edge.generation.result import Gated, Lost, Tail
from cutline.edge.offload.backends.backend import Backend, RemoteSession
from cutline.errors import CutlineError


@dataclass(slots=True, eq=False)
class Route:
    """The way of one generation from backend to backend, the `sessions` with them, and those that were `lost`.

    It `began` and the answer had `ended` then, by `time.perf_counter`: what is corrected later was there before. `gate`
    is what the gate said. `worker` is the address of the last that appended something over a network, and `exact` what
    that is. If the drafter went on `alone_from` a token, `tail` is what became of that. `unkept` is what the gate would
    have kept, but for what audits have shown.
    """

    began: float
    gate: Gated
    worker: str | None = None
    exact: bool | None = False
    sessions: list[RemoteSession] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    alone_from: int | None = None
    tail: Tail | None = None
    ended: float | None = None
    unkept: Wording | None = None
    _loss: Lost | None = None  # of which is not told yet who goes on

    @property
    def bytes_up(self) -> int:
        """Bytes that went out."""
        return sum(session.bytes_up for session in self.sessions)

    @property
    def bytes_down(self) -> int:
        """Bytes that came."""
        return sum(session.bytes_down for session in self.sessions)

    @property
    def passes(self) -> int:
        """Passes of the target that sessions took part in which came to their end."""
        return sum(session.passes for session in self.sessions)

    @property
    def seconds(self) -> float:
        """What the answer took."""
        return (self.ended or time.perf_counter()) - self.began

    @property
    def whole(self) -> bool:
        """Whether it went as it was meant to: nobody was lost, and the drafter did not have to help."""
        return not self.lost and self.tail is None

    @property
    def begun(self) -> bool:
        """Whether the backend that was asked last had begun to answer."""
        return bool(self.sessions) and self.sessions[-1].answered

    async def follow(self, backend: Backend, generation: Generation) -> None:
        """Have a backend go on with the generation, and note what it did. Raises CutlineError."""
        self.tell_lost(generation, backend.address)
        settled = len(generation.tokens)
        try:
            await backend.extend(generation)
        finally:
            if (session := backend.session) is not None:
                self.sessions.append(session)
                if len(generation.tokens) > settled:
                    self.worker, self.exact = session.address, backend.exact

    def lose(self, address: str, error: CutlineError, position: int) -> None:
        """Note that a backend was lost; who goes on is not known yet."""
        session = next((one for one in reversed(self.sessions) if one.address == address), None)
        silent = 0.0 if session is None else time.monotonic() - session.heard
        self._loss = Lost(worker=address, why=str(error), position=position, silent_ms=silent * 1e3, next=None)

    def tell_lost(self, generation: Generation, successor: str | None) -> None:
        """Tell of one that was lost, if that is not told yet, with the address of who goes on."""
        if self._loss is not None:
            lost, self._loss = msgspec.structs.replace(self._loss, next=successor), None
            self.lost.append(lost)
            generation.tell(lost)
