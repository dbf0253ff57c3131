"""BLEU and CIDEr: how much of what people wrote a text says, by its runs of up to four words."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutline.core.agreement.texts import normalized

ORDER = 4  # words of the longest run
SIGMA = 6.0  # of CIDEr-D's penalty for another length
# What BLEU's usual tokenizer (mteval-v13a) puts spaces about.
_APART = (
    (re.compile(r"([{-~\[-` -&(-+:-@/])"), r" \1 "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)

Runs = Counter[tuple[str, ...]]


def runs_of(words: Sequence[str]) -> Runs:
    """How often each run of up to ORDER words is among `words`."""
    return Counter(tuple(words[at : at + size]) for size in range(1, ORDER + 1) for at in range(len(words) - size + 1))


def bleu_counts(text: str, references: Sequence[str]) -> NDArray[np.float64]:
    """What BLEU sums: matching and all runs of each size, the words, and those of the nearest reference."""
    words = _words(text)
    others = [_words(one) for one in references]
    ours, most = runs_of(words), Runs()
    for other in others:
        most |= runs_of(other)
    right, made = np.zeros(ORDER), np.zeros(ORDER)
    for run, count in ours.items():
        right[len(run) - 1] += min(count, most[run])
        made[len(run) - 1] += count
    nearest = min((len(one) for one in others), key=lambda length: (abs(length - len(words)), length))
    return np.array([*right, *made, len(words), nearest])


def bleu(counts: NDArray[np.floating[Any]]) -> float:
    """BLEU-4 (0 to 1) of a corpus by the sum of its `bleu_counts`, smoothed as sacrebleu does where a size has none."""
    right, made, words, nearest = counts[:ORDER], counts[ORDER : 2 * ORDER], counts[-2], counts[-1]
    if not right.any() or not made.all():
        return 0.0
    logs, halved = 0.0, 1.0
    for found, count in zip(right, made, strict=True):
        if found == 0:
            halved *= 2
        logs += math.log(found / count if found else 1 / (halved * count))
    return math.exp(min(0.0, 1 - nearest / words) + logs / ORDER)


class Cider:
    """CIDEr-D of texts, once all references were `seen`: runs that few questions' references have weigh most."""

    def __init__(self, references: Iterable[Sequence[str]]) -> None:
        self._seen: Counter[tuple[str, ...]] = Counter()
        self._questions = 0
        for some in references:
            self._questions += 1
            self._seen.update({run for one in some for run in runs_of(normalized(one).split())})

    def score(self, text: str, references: Sequence[str]) -> float:
        """The score, 0 to 10: ten times a mean of cosines."""
        ours = self._weighed(text)
        found = [self._alike(ours, self._weighed(one)) for one in references]
        return 10.0 * sum(found) / len(found)

    def _weighed(self, text: str) -> tuple[list[dict[tuple[str, ...], float]], int]:
        words = normalized(text).split()
        weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(ORDER)]
        for run, count in runs_of(words).items():
            rarity = math.log(max(1, self._questions)) - math.log(max(1, self._seen[run]))
            weights[len(run) - 1][run] = count * rarity
        return weights, max(0, len(words) - 1)

    @staticmethod
    def _alike(
        ours: tuple[list[dict[tuple[str, ...], float]], int], theirs: tuple[list[dict[tuple[str, ...], float]], int]
    ) -> float:
        total = 0.0
        for mine, other in zip(ours[0], theirs[0], strict=True):
            product = sum(min(weight, other[run]) * other[run] for run, weight in mine.items() if run in other)
            norms = math.sqrt(sum(one**2 for one in mine.values()) * sum(one**2 for one in other.values()))
            total += product / norms if norms else 0.0
        return total / ORDER * math.exp(-((ours[1] - theirs[1]) ** 2) / (2 * SIGMA**2))


def _words(text: str) -> list[str]:
    text = f" {' '.join(text.split())} "
    for pattern, apart in _APART:
        text = pattern.sub(apart, text)
    return text.split()
