"""Answers of late as drafts: what was said of a scene is likely said of it again, and costs nothing to propose.

They are tokens alone, and only a tenant's own ones serve it: how fast an answer comes would tell of another's.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from cutline.core.lru_cache import LruCache

ANSWERS = 64  # of a tenant
TOKENS = 512  # of an answer; what is behind them is not kept
TENANTS = 64
SECONDS = 600.0  # that an answer is kept
GRAM = 2  # tokens that have to be the same before what followed them is proposed
LONGEST = 16  # tokens behind which a longer match says no more
FADE = 0.5  # of what was known of a question's drafts, with each answer to it
LEAST = 0.1  # share of right tokens below which an answer is not proposed ...
TRIAL = 16  # ... but once in so many times


@dataclass(slots=True)
class _Said:
    """An answer to a `question`, and the places behind each of its pairs of tokens."""

    question: Hashable
    tokens: tuple[int, ...]
    at: float
    places: dict[tuple[int, ...], list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for place in range(GRAM, len(self.tokens)):
            self.places.setdefault(self.tokens[place - GRAM : place], []).append(place)


@dataclass(slots=True)
class _Tenant:
    """What was answered to one, the latest last, and what proposing an answer to a question was worth."""

    said: OrderedDict[Hashable, _Said] = field(default_factory=OrderedDict)
    worth: dict[Hashable, tuple[float, int]] = field(default_factory=dict)  # share of right tokens, times not proposed


@dataclass(frozen=True, slots=True)
class Proposal:
    """Tokens that followed before, and behind how many of the same: LONGEST at most."""

    tokens: tuple[int, ...]
    matched: int


class RecentAnswers:
    """Keeps answers for a while, and finds in them what may follow. For any threads."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tenants: LruCache[str, _Tenant] = LruCache(TENANTS)

    def keep(self, tenant: str, question: Hashable, tokens: Sequence[int], *, right: float | None = None) -> None:
        """Keep an answer. Of what was proposed for it this share was `right`, None where nothing was."""
        with self._lock:
            if (of := self._tenants.get(tenant)) is None:
                self._tenants.put(tenant, of := _Tenant())
            words = tuple(tokens[:TOKENS])
            of.said.pop((question, words), None)
            of.said[question, words] = _Said(question, words, self._clock())
            while len(of.said) > ANSWERS:
                of.said.popitem(last=False)
            if right is not None:
                before, _ = of.worth.get(question, (right, 0))
                of.worth[question] = FADE * before + (1.0 - FADE) * right, 0
                asked = {one.question for one in of.said.values()}
                of.worth = {one: worth for one, worth in of.worth.items() if one in asked}

    def whole(self, tenant: str, question: Hashable) -> tuple[int, ...]:
        """The latest answer to the same question, if those before were worth it."""
        with self._lock:
            of = self._tenants.get(tenant)
            found = None if of is None else next((one for one in self._latest(of) if one.question == question), None)
            if of is None or found is None:
                return ()
            share, passed = of.worth.get(question, (1.0, 0))
            if share < LEAST and passed < TRIAL - 1:
                of.worth[question] = share, passed + 1
                return ()
            return found.tokens

    def following(self, tenant: str, question: Hashable, answer: Sequence[int]) -> Proposal | None:
        """What followed the longest end of `answer` that was said before: in an answer to the same question, or any."""
        key = tuple(answer[-GRAM:])
        with self._lock:
            if len(key) < GRAM or (of := self._tenants.get(tenant)) is None:
                return None
            best = (0, False)
            found = None
            for one in self._latest(of):
                for place in reversed(one.places.get(key, ())):
                    rank = _matched(one.tokens[:place], answer), one.question == question
                    if rank > best:
                        best, found = rank, Proposal(one.tokens[place:], rank[0])
            return found

    def _latest(self, of: _Tenant) -> list[_Said]:
        """A tenant's answers that are not too old, the latest first."""
        since = self._clock() - SECONDS
        for key in [key for key, one in of.said.items() if one.at < since]:
            del of.said[key]
        return list(reversed(of.said.values()))


def _matched(before: Sequence[int], answer: Sequence[int]) -> int:
    """How many tokens at the end of both are the same, LONGEST at most."""
    most = min(len(before), len(answer), LONGEST)
    return next((count for count in range(most) if before[-1 - count] != answer[-1 - count]), most)
