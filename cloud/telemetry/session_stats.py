"""Statistics of one session for logs, traces and audits, without any of its content."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from cutline.errors import CutlineError
from cutline.protos.messages import Confirmed, Finished, Open, Opened
from cutline.protos.request_ids import TRACE_KEY, trace_id
from cutline.protos.status import status_of


@dataclass(slots=True)
class Account:
    """The statistics of one session of `tenant`. `trace` is the agent's trace context, unchanged.

    Seconds count from the beginning of the stream; None stands for an event that has not happened.
    """

    tenant: str
    trace: str = ""
    began: float = field(default_factory=time.time)  # Unix time
    session: str = ""
    request_id: str = ""
    cut: str = ""
    images: int = 0
    prompt_tokens: int = 0
    opened: Opened | None = None
    opened_seconds: float | None = None
    first_seconds: float | None = None  # until the first token
    tokens: int = 0
    accepted: int = 0
    finished: Finished | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    slowed: float = 0.0  # seconds that reading paused because its tenant was over its upload rate
    seconds: float = 0.0
    status: str = "CANCELLED"  # until another status is known
    _clock: float = field(default_factory=time.monotonic)

    def asked(self, opening: Open) -> None:
        """Note the agent's `opening` message."""
        self.request_id = opening.request_id
        self.cut, self.images, self.prompt_tokens = opening.cut, opening.images, opening.prompt_length

    def told(self, event: Opened | Confirmed | Finished) -> None:
        """Note an `event` that is sent to the agent."""
        match event:
            case Opened():
                self.opened, self.session, self.opened_seconds = event, event.session, self._now()
            case Confirmed():
                self.first_seconds = self._now() if self.first_seconds is None else self.first_seconds
                self.tokens += len(event.tokens)
                self.accepted += event.accepted
            case Finished():
                self.finished, self.status = event, "OK"

    def failed(self, error: CutlineError) -> None:
        """Note that the session ends with `error`."""
        self.status = status_of(error).name

    def close(self) -> None:
        """Note the end of the stream."""
        self.seconds = self._now()

    def _now(self) -> float:
        return time.monotonic() - self._clock

    def fields(self) -> dict[str, Any]:
        """The fields of a log line."""
        fields: dict[str, Any] = {
            "session": self.session,
            "request": self.request_id,
            "tenant": self.tenant,
            "status": self.status,
            "cut": self.cut,
            "images": self.images,
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.tokens,
            "accepted": self.accepted,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "seconds": round(self.seconds, 4),
        }
        if self.opened is not None:
            fields |= {
                "upload_seconds": round(self.opened.upload_seconds, 4),
                "prepare_seconds": round(self.opened.prepare_seconds, 4),
                "queue_seconds": round(self.opened.queue_seconds, 4),
                "reused_tokens": self.opened.reused,
            }
        if self.first_seconds is not None:
            fields["first_token_seconds"] = round(self.first_seconds, 4)
        if self.finished is not None:
            fields |= {
                "passes": self.finished.passes,
                "verified": self.finished.verified,
                "cloud_seconds": round(self.finished.cloud_seconds, 4),
            }
        return fields


def trace_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The W3C trace context in a call's metadata; "" if there is none or it is malformed."""
    given = next((str(value) for key, value in metadata or () if key == TRACE_KEY), "")
    return "" if trace_id(given) is None else given
