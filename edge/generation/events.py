"""What happens while an agent answers, in order, as `Agent.stream` tells it; an `Answer` comes last.

Positions count the answer's tokens. What is settled stands, unless a `Corrected` replaces a tail of it that the agent
had finished alone; what is guessed may be replaced by what is settled at any time.
"""

from __future__ import annotations

import msgspec

from cutline.core.request import Mode
from cutline.core.wire import Wire
from cutline.edge.generation.result import Answer, Lost, Token


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """How the answer will be made. `predicted_ms` and `why` are None where nothing was planned."""

    mode: Mode
    cut: str
    wire: Wire | None
    predicted_ms: float | None = None
    why: str | None = None


class Guessed(msgspec.Struct, frozen=True):
    """What the drafter believes to follow the first `position` tokens; in place of all that it believed before."""

    position: int
    text: str


class Settled(msgspec.Struct, frozen=True):
    """Tokens of the answer from `position` on."""

    position: int
    tokens: tuple[Token, ...]


class Corrected(msgspec.Struct, frozen=True):
    """Tokens that replace all that was settled from `position` on."""

    position: int
    tokens: tuple[Token, ...]


Event = Planned | Guessed | Settled | Lost | Corrected | Answer
