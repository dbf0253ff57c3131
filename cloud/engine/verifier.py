"""What is confirmed of a session's tokens: by a pass of this worker, or by the next worker of the chain."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from cutline.cloud.engine.image_features import ImageFeatures
from cutline.cloud.engine.passes import Broken, Passed
from cutline.cloud.engine.sampler import likelihoods
from cutline.cloud.engine.session_table import SessionTable
from cutline.cloud.engine.sessions.session import Session
from cutline.cloud.telemetry.observer import Observer
from cutline.errors import CutlineError, WorkerFailed
from cutline.models.law.sampling import agreeing
from cutline.protos.messages import Confirmed, Finished, Likelihood


class Verifier:
    """Of the sessions in `table`, which end where it ends in one of `stop_tokens`.

    Where this worker has no part of the decoder, what the next one confirms goes by as it comes.
    """

    def __init__(
        self,
        table: SessionTable,
        images: ImageFeatures,
        observer: Observer,
        *,
        stop_tokens: Collection[int],
        decodes: bool,
    ) -> None:
        self._table = table
        self._images = images
        self._observer = observer
        self._stop_tokens = frozenset(stop_tokens)
        self._decodes = decodes

    def confirm(self, outcome: Passed | Broken) -> None:
        """Go on by what a pass made of a session's rows. A session that broke it ends alone."""
        with self._table.isolated(outcome.rows.session):
            match outcome:
                case Passed():
                    self._passed(outcome)
                case Broken():
                    raise outcome.error

    def relay(self, name: str, event: Confirmed | Finished | CutlineError) -> None:
        """Go on by what the next worker says of a session; of no effect if it has ended."""
        if (session := self._table.get(name)) is None:
            return
        with self._table.isolated(session):
            match event:
                case Confirmed() if self._decodes:
                    self._landed(session, event)
                case Finished():
                    self._table.emit(session, replace(event, cloud_seconds=event.cloud_seconds + session.seconds))
                case _:
                    self._table.emit(session, event)

    def _passed(self, passed: Passed) -> None:
        rows, session = passed.rows, passed.rows.session
        session.ran(rows, passed.seconds, self._table.now())
        if rows.partial:
            session.keep(rows, passed.made.numpy() if passed.chosen is None else None)
            return
        sides = self._images.sides(session)
        self._images.forget(session)
        if passed.chosen is None:
            self._table.emit(session, session.forward(rows, passed.made.numpy(), sides))
        else:
            self._chosen(passed, passed.chosen)

    def _chosen(self, passed: Passed, chosen: list[int]) -> None:
        """A pass gave tokens: those up to the first that is not the drafted one are the target's."""
        session, drafted = passed.rows.session, passed.rows.drafted
        right = agreeing(passed.rows.tokens[-drafted:], chosen) if drafted else 0
        if drafted and not passed.rows.forced:
            self._observer.verified(drafted, right)
        of: list[Likelihood] = []
        if session.request.likelihoods:
            of = likelihoods(passed.made[: right + 1], chosen[: right + 1], session.request.alternatives)
        self._table.emit(session, session.confirm(chosen, drafted, self._stop_tokens, of))
        if session.reason is not None:
            self._table.emit(session, session.finished())
        else:
            session.propose()

    def _landed(self, session: Session, event: Confirmed) -> None:
        """What was in flight was confirmed: drafts that waited for that are taken."""
        try:
            confirmed = session.confirm_in_flight(event, self._stop_tokens)
        except WorkerFailed as error:
            self._table.emit(session, error)
            return
        self._table.emit(session, confirmed)
        session.confirmed_at = self._table.now()
        session.take_waiting()
