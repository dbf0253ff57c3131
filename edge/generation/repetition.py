"""Whether an answer goes round in circles: a small model that began to repeat itself would never end."""

from __future__ import annotations

from collections.abc import Sequence

LENGTH = 8  # tokens
TIMES = 4


class Repetition:
    """Looks for the same `LENGTH` tokens `TIMES` times in an answer, one behind the other or further apart."""

    def __init__(self) -> None:
        self._seen = 0
        self._places: dict[tuple[int, ...], tuple[int, int]] = {}  # how often it came, and where it came last

    def in_answer(self, answer: Sequence[int]) -> bool:
        """Whether it is in `answer`, which goes on from the one before, if there was one."""
        for end in range(max(self._seen, LENGTH - 1) + 1, len(answer) + 1):
            words = tuple(answer[end - LENGTH : end])
            times, last = self._places.get(words, (0, 0))
            if not times or end - last >= LENGTH:  # a run of one token is not as many of itself as it is long
                times += 1
                self._places[words] = times, end
            if times >= TIMES:
                return True
        self._seen = len(answer)
        return False
