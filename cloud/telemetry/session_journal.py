"""A worker's journal: the answers of tenants whose keys say so are kept, for drafters to learn from."""

from __future__ import annotations

import time

from cutline.cloud.telemetry.answered_session import AnsweredSession
from cutline.cloud.telemetry.observer import Observer
from cutline.core.escalations.escalation import Escalation
from cutline.core.escalations.recorder import EscalationRecorder


class SessionJournal(Observer):
    """Has a `recorder` keep what was answered by the model whose identity is `model`."""

    def __init__(self, recorder: EscalationRecorder, model: str) -> None:
        self._recorder = recorder
        self._model = model

    def answered(self, session: AnsweredSession) -> None:
        opening, tokens = session.opening, tuple(session.tokens)
        likely = tuple(one.alternatives for one in session.likelihoods)
        self._recorder.keep(
            Escalation(
                time=time.time(),
                tenant=session.tenant,
                target=self._model,
                prompt=opening.tokens[: opening.prompt_length],
                tokens=tokens,
                images=session.files,
                sampling=opening.sampling,
                draft=opening.draft,
                likely=likely if len(likely) == len(tokens) and all(likely) else (),
            )
        )
