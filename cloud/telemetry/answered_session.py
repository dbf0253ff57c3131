"""A session with its content, which is gathered only where its tenant's key and the request say that it may be kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cutline.protos.messages import Confirmed, Finished, Likelihood, Open, Opened


@dataclass(slots=True, eq=False)
class AnsweredSession:
    """A session of `tenant`: what opened it, the `files` of its images, and the `tokens` of its answer so far."""

    tenant: str
    opening: Open
    files: tuple[bytes, ...]
    tokens: list[int] = field(default_factory=list)
    likelihoods: list[Likelihood] = field(default_factory=list)

    @classmethod
    def begun(cls, tenant: str, opening: Open, files: Sequence[bytes]) -> AnsweredSession | None:
        """One that has begun; None where what is asked about is not all here: at a cut, of kept images, of films."""
        if opening.cut != "image" or opening.known or opening.pieces:
            return None
        return cls(tenant, opening, tuple(files), list(opening.tokens[opening.prompt_length :]))

    def told(self, event: Opened | Confirmed | Finished) -> None:
        """Note an event that is sent to the agent."""
        if isinstance(event, Confirmed):
            self.tokens += event.tokens
            self.likelihoods += event.likelihoods
