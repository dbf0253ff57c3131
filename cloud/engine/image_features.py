"""Rows of the images of open sessions: encoded step by step between passes, and kept for sessions to come."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from cutline.cloud.engine.cost_model import Pacing
from cutline.cloud.engine.image_cache import ImageCache, Kept
from cutline.cloud.engine.listeners import Listeners
from cutline.cloud.engine.sessions.session import Session
from cutline.cloud.engine.sessions.session_request import SessionRequest
from cutline.cloud.model.model_runner import Target
from cutline.cloud.model.vision import Steps, Unwanted
from cutline.cloud.telemetry.watchdog import EngineProgress

FADING = 0.9  # of what a slow step says of those to come, with each


class ImageFeatures:
    """Image rows by session, as long as prompts are run; images are kept on `image_cache`. One thread may call.

    Images are encoded by priority, and then in the order in which sessions came, as long as anybody waits for them. But
    those of one session that took so long that others should have their turn go behind them, so that no picture holds
    up everybody; and now and then those of lower priority have a slice, so that nobody waits for ever.
    """

    def __init__(
        self, target: Target, image_cache: ImageCache, listeners: Listeners, progress: EngineProgress, pacing: Pacing
    ) -> None:
        self._target = target
        self._image_cache = image_cache
        self._listeners = listeners
        self._progress = progress
        self._pacing = pacing
        self._rows: dict[Session, torch.Tensor] = {}
        self._under_way: dict[Session, Steps] = {}  # the next first
        self._usual: float | None = None  # seconds that a step does not usually exceed, None where none was seen
        self._taken: dict[Session, float] = {}  # seconds of its turn
        self._waits_since: float | None = None  # for a slice: any of lower priority, None where there is none

    def __len__(self) -> int:
        """Of how many sessions rows are held."""
        return len(self._rows)

    def next(self, now: float) -> Session | None:
        """The session whose images are encoded next, None where all are."""
        first = min(self._under_way, key=_rank, default=None)
        behind = [one for one in self._under_way if first is not None and _rank(one) > _rank(first)]
        if not behind:
            self._waits_since = None
            return first
        if self._waits_since is None:
            self._waits_since = now
        if now - self._waits_since < self._pacing.aged_seconds:
            return first
        self._waits_since = now
        return behind[0]

    def add(self, session: Session) -> None:
        """Have the images of a session encoded, if it has any."""
        if session.request.sides is not None:
            self._rows[session] = self._target.on_device(session.request.sides)
            session.request = replace(session.request, sides=None)
        elif session.request.pictured:
            self._under_way[session] = self._encoding(session)

    def awaits(self, session: Session) -> bool:
        """Whether rows of its images are yet to be made."""
        return session in self._under_way

    def encode(self, session: Session, *, until: float) -> None:
        """Encode a session's images step by step, `until` a time on the monotonic clock, or to their end.

        Raises what a step raises; its session has then to be forgotten.
        """
        work = self._under_way[session]
        began = before = time.monotonic()
        while before <= until and self._listeners.awaits([session]):
            try:
                with self._progress.at(self._usual):
                    next(work)
            except StopIteration as end:
                self.forget(session)
                self._rows[session] = end.value
                return
            except Unwanted:
                self._under_way[session] = _unmade()
                return
            now = time.monotonic()
            self._usual, before = max(now - before, (self._usual or 0.0) * FADING), now
        self._taken[session] = self._taken.get(session, 0.0) + time.monotonic() - began
        if self._taken[session] > self._pacing.fair_seconds:
            self._under_way[session], self._taken[session] = self._under_way.pop(session), 0.0

    def of(self, session: Session) -> torch.Tensor | None:
        """The rows (n, width) of all the session's images, while its prompt is run; None if it has none."""
        return self._rows.get(session)

    def sides(self, session: Session) -> NDArray[np.float32] | None:
        """Of a session's images what goes on beside its rows, once, to the layers behind those here."""
        rows = self.of(session)
        return rows.float().cpu().numpy() if self._target.passes_sides and rows is not None else None

    def forget(self, session: Session) -> None:
        """Its prompt was run, or it ended."""
        self._rows.pop(session, None)
        self._under_way.pop(session, None)
        self._taken.pop(session, None)

    def keeps(self, request: SessionRequest, *, encoded: bool) -> bool:
        """Whether all images of a request are kept for others to come; `encoded`: those that were not, are to be."""
        return (
            self._image_cache.keeps
            and self._target.decodes
            and all(one.key is not None and (encoded or one.kept is not None) for one in request.pictures)
        )

    def _encoding(self, session: Session) -> Steps:
        """Rows of the images of a session: those that are kept, and of the others what the tower makes; it is kept."""
        request = session.request

        def aborted() -> bool:
            return not self._listeners.awaits([session])

        boundary, cut, pictures = request.boundary, request.cut, request.pictures
        if any(picture.key is None for picture in pictures) or not pictures or not self._target.decodes:
            assert boundary is not None
            return (yield from self._target.steps(boundary, cut, request.grids, aborted=aborted))
        new = [picture for picture in pictures if picture.kept is None]
        made = {}
        if new:
            assert boundary is not None
            grids = [of.grid for of in new]
            rows = yield from self._target.steps(boundary, cut, grids, aborted=aborted)
            for picture, of in zip(new, self._target.parted(rows, grids), strict=True):
                assert picture.key is not None
                made[picture] = Kept(picture.grid, of)
                self._image_cache.put(picture.key, made[picture])
        return torch.cat([(picture.kept or made[picture]).rows for picture in pictures])


def _rank(session: Session) -> int:
    return session.request.priority.rank


def _unmade() -> Steps:
    """Rows that never come: nobody waits for them, and the session is about to end."""
    while True:
        yield
