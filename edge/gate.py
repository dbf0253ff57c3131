"""The gate: whether the drafter's answer may stand without asking the target, and how sure that is.

Confidence is the probability that the drafter gives its whole answer. The threshold is found on a calibration set
by fixed-sequence testing with exact binomial bounds ("Learn then test", Angelopoulos et al. 2021): from the most
confident answers down, each threshold must show that kept answers disagree with the target in at most `risk` of
cases, at the confidence asked; the first that cannot ends the search.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from cutline.edge.drafter import Drafted
from cutline.errors import BundleError
from cutline.models.bundle import Bundle, write_calibration
from cutline.models.sampling import Sampling, agreeing

_STEPS = 100  # thresholds tried: a finer walk only gives chance more occasions to stop early


class Gate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A calibrated gate, as a drafter's bundle holds it.

    `threshold` is the least confidence at which an answer is kept (above 1: none is); among `requests` calibration
    requests it keeps `kept`, of which `disagreed` differ from the target's answer. The target's answers have `tokens`
    on average, of which the drafter foresees the share `foreseen`; those that the gate passes on have `passed_tokens`
    and `passed_foreseen`. None where that was not counted.
    """

    threshold: float
    risk: float
    confidence: float
    requests: int
    kept: int
    disagreed: int
    tokens: float | None = None
    foreseen: float | None = None
    passed_tokens: float | None = None
    passed_foreseen: float | None = None

    def keeps(self, drafted: Sequence[Drafted], sampling: Sampling) -> bool:
        """Whether the answer may stand. Only greedy answers: the gate was not calibrated for others."""
        return sampling.temperature == 0.0 and confidence_of(drafted) >= self.threshold


def confidence_of(drafted: Sequence[Drafted]) -> float:
    """The probability, by the drafter, of all of `drafted`."""
    return math.prod(token.probability for token in drafted)


def open_gate(bundle: Bundle) -> Gate:
    """The gate in a drafter's bundle. Raises BundleError."""
    if bundle.manifest.calibration is None:
        raise BundleError(f"{bundle.path} is not calibrated, so no answer can be trusted; run `cutline calibrate`")
    try:
        return msgspec.convert(bundle.manifest.calibration, type=Gate)
    except msgspec.ValidationError as error:
        raise BundleError(f"the calibration in {bundle.path} does not read ({error}); calibrate again") from None


def calibrate_gate(
    confidences: Sequence[float], agreed: Sequence[bool], *, risk: float = 0.05, confidence: float = 0.9
) -> Gate:
    """The gate that keeps the most answers among those whose bound holds.

    `confidences` and `agreed` describe the calibration requests, one each: the drafter's confidence in its answer,
    and whether that answer equals the target's.
    """
    order = np.argsort(-np.asarray(confidences, np.float64), kind="stable")
    scores = np.asarray(confidences, np.float64)[order]
    wrong = np.cumsum(~np.asarray(agreed, bool)[order])
    best, kept, disagreed = math.inf, 0, 0
    for end in np.unique(np.linspace(1, len(scores), _STEPS).astype(int)) if len(scores) else ():
        count = int(np.searchsorted(-scores, -scores[end - 1], side="right"))  # ties are kept together
        errors = int(wrong[count - 1])
        # Too few to tell, whatever they are: not yet a test of this threshold.
        if (1 - risk) ** count > 1 - confidence:
            continue
        if binomial_tail(errors, count, risk) > 1 - confidence:
            break
        best, kept, disagreed = float(scores[count - 1]), count, errors
    threshold = best if kept else 2.0
    return Gate(
        threshold=threshold, risk=risk, confidence=confidence, requests=len(scores), kept=kept, disagreed=disagreed
    )


def with_answers(
    gate: Gate, confidences: Sequence[float], drafted: Sequence[Sequence[int]], truths: Sequence[Sequence[int]]
) -> Gate:
    """The gate with what the calibration's answers were like: the drafter's tokens, and the target's, one each."""
    every = list(zip(drafted, truths, strict=True))
    passed = [pair for pair, sure in zip(every, confidences, strict=True) if sure < gate.threshold]
    tokens, foreseen = _answers_of(every)
    passed_tokens, passed_foreseen = _answers_of(passed)
    return msgspec.structs.replace(
        gate, tokens=tokens, foreseen=foreseen, passed_tokens=passed_tokens, passed_foreseen=passed_foreseen
    )


def _answers_of(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[float | None, float | None]:
    """Tokens of an answer, and the share of them that is foreseen: of those up to the first that is not."""
    if not pairs:
        return None, None
    right = [agreeing(ours, theirs) for ours, theirs in pairs]
    wrong = sum(count < len(theirs) for count, (_, theirs) in zip(right, pairs, strict=True))
    return sum(len(theirs) for _, theirs in pairs) / len(pairs), sum(right) / max(1, sum(right) + wrong)


def binomial_tail(errors: int, count: int, rate: float) -> float:
    """P(at most `errors` of `count`) when each errs with chance `rate`: the p-value against a higher rate."""
    log_odds = math.log(rate) - math.log1p(-rate)
    term = count * math.log1p(-rate)
    terms = [term]
    for k in range(errors):
        term += math.log(count - k) - math.log(k + 1) + log_odds
        terms.append(term)
    return min(1.0, math.fsum(math.exp(t) for t in terms))


def save_gate(bundle: Bundle, gate: Gate) -> None:
    """Write the gate into a drafter's bundle, in place of one that is there; the bundle's identity stays the same."""
    write_calibration(bundle, gate)
