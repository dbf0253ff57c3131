"""The gate: whether the drafter's answer may stand without asking anybody else, and how sure that is.

Confidence is the probability that the drafter gives its whole answer. Each group of requests (`conditions.py`) has a
threshold of its own, found on samples of that group by fixed-sequence testing with exact binomial bounds ("Learn
then test", Angelopoulos et al. 2021; by groups as Mondrian conformal methods are, Vovk et al. 2003): from the most
confident answers down, each threshold must show that kept answers disagree with those that count in at most `risk` of
cases, at the confidence asked; the first that cannot ends the search. A group without one is closed: nothing of it is
kept. Answers that count are the target's, those of an upstream's model, or known ones; what agreeing is, a measure says
(`core/agreement`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated

import msgspec
import numpy as np

from cutline.core.agreement.measures import TOKENS, Wording, is_own, measure_named
from cutline.core.agreement.shares import binomial_tail
from cutline.edge.generation.conditions import PLAIN
from cutline.edge.generation.result import Decision, Gated
from cutline.edge.inference.drafter import Drafted
from cutline.edge.inference.familiarity import Familiarity, Row
from cutline.errors import BundleError
from cutline.models.bundle import Bundle, write_calibration
from cutline.models.law.sampling import agreeing

MAX_TOKENS = 64  # of an answer to a calibration request; of longer ones nothing was learnt
TARGET = "target"  # what answers are compared with: the target's, ...
ANSWERS = "answers"  # ... known ones, or an upstream's, whose model stands behind ...
_UPSTREAM = "upstream:"  # ... this
UNFAMILIAR = ", unfamiliar picture"  # behind a group's name: nothing was calibrated on such, of whatever group
_STEPS = 100  # thresholds tried: a finer walk only gives chance more occasions to stop early


class Population(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Of the calibration requests of one name in the data: how many there are, are kept, and disagree though kept."""

    requests: int
    kept: int
    disagreed: int


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A group's threshold and what was counted of it.

    `threshold` is the least confidence at which an answer is kept (above 1: none is); among `requests` calibration
    requests it keeps `kept`, of which `disagreed` differ, by the measure `agree`, from the answers that they were held
    `against`. `risk` is promised; the threshold is found for what is left of it without the `reserve`, held back for
    requests that differ from the calibration's. `populations` are the same counts by the names that the data gives.

    The target's answers have `tokens` on average, of which the drafter foresees the share `foreseen`; those that the
    gate passes on have `passed_tokens` and `passed_foreseen`. None where that was not counted. `needs`: about how many
    samples more would open a closed group, as far as these tell; None where it is open, or where more would not help.
    """

    threshold: float
    risk: Annotated[float, msgspec.Meta(gt=0.0, lt=1.0)]
    confidence: float
    reserve: float = 0.0
    requests: int
    kept: int
    disagreed: int
    agree: str = TOKENS
    against: str = TARGET
    populations: Mapping[str, Population] = {}
    tokens: float | None = None
    foreseen: float | None = None
    passed_tokens: float | None = None
    passed_foreseen: float | None = None
    needs: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether any answer may be kept: its calibration kept some."""
        return self.kept > 0

    def keeps(self, drafted: Sequence[Drafted], stop_tokens: Collection[int]) -> bool:
        """Whether the answer may stand: one that the drafter ended itself, and is sure enough of.

        One that a limit or a word cut short, or that is longer than MAX_TOKENS, no calibration kept.
        """
        whole = 0 < len(drafted) <= MAX_TOKENS and drafted[-1].token in stop_tokens
        return self.is_open and whole and confidence_of(drafted) >= self.threshold


class Gate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A calibrated gate, as a drafter's bundle holds it: its groups by name, and what `pictures` are familiar to it."""

    groups: Mapping[str, Group]
    pictures: Familiarity | None = None

    def of(self, group: str) -> Group | None:
        """What it does with requests of a group; None where that is closed, and nothing of it is kept.

        That about unfamiliar pictures would be kept as others are, if audits have shown that they may.
        """
        found = self.groups.get(group.removesuffix(UNFAMILIAR))
        return found if found is not None and found.is_open else None

    def named(self, group: str, pictures: Sequence[Row]) -> str:
        """The name of a group's part that a request belongs to: an unfamiliar picture, by its pooled row, is apart."""
        strange = self.pictures is not None and self.pictures.is_unfamiliar(pictures)
        return group + UNFAMILIAR if strange else group

    def before(self, upstream: str | None) -> Gate:
        """What of it holds where this model of an upstream answers what is not kept, or else the target, or nobody.

        A promise is about who would answer otherwise, or about what is known to be right.
        """
        there = (ANSWERS, TARGET if upstream is None else upstream_named(upstream))
        held = {name: group for name, group in self.groups.items() if group.against in there}
        return Gate(held, self.pictures)

    def agrees(self, group: str, ours: Wording, theirs: Wording) -> bool:
        """Whether two answers agree by the measure that an open group was calibrated by."""
        found = self.of(group)
        return measure_named(TOKENS if found is None else found.agree).agrees(ours, theirs)

    @property
    def unaudited(self) -> str | None:
        """Why audits cannot compare as the calibration did; None where they can."""
        for name, group in self.groups.items():
            if group.is_open and is_own(group.agree):
                return f"the gate was calibrated by {group.agree}, which is not on this device"
            if group.is_open and group.against != TARGET:
                return f"the gate promises what {whose(group.against)} say, and an audit asks the target ({name})"
        return None

    def said(self, group: str, decision: Decision) -> Gated:
        """What it says of an answer to a request of a group, having decided so."""
        if (found := self.of(group)) is None:
            return Gated(group=group, calibrated=False, decision=decision)
        return Gated(
            group=group,
            calibrated=not group.endswith(UNFAMILIAR),
            decision=decision,
            promised=found.risk if decision is Decision.KEPT else None,
            agree=found.agree,
            against=found.against,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One calibration request: its group, the drafter's confidence, and whether its answer agreed with what counts.

    The tokens are those `drafted`, and `truth` the target's, None where another's answer counts. `population` is the
    name that the data gives to such requests.
    """

    group: str
    confidence: float
    agreed: bool
    drafted: tuple[int, ...]
    truth: tuple[int, ...] | None
    population: str | None = None


def upstream_named(model: str) -> str:
    """What a calibration was held against whose answers are those of an upstream's model."""
    return _UPSTREAM + model


def whose(against: str) -> str:
    """Whose answers a calibration was held against, in words."""
    told = {TARGET: "the target's", ANSWERS: "the known answers"}
    return told.get(against) or f"those of the upstream's {against.removeprefix(_UPSTREAM)}"


def confidence_of(drafted: Sequence[Drafted]) -> float:
    """The probability, by the drafter, of all of `drafted`."""
    return math.prod(token.probability for token in drafted)


def open_gate(bundle: Bundle) -> Gate:
    """The gate in a drafter's bundle. Raises BundleError.

    One from before there were groups was calibrated on plain questions, and is that group's alone.
    """
    found = bundle.manifest.calibration
    if found is None:
        raise BundleError(f"{bundle.path} is not calibrated, so no answer can be trusted; run `cutline calibrate`")
    try:
        return Gate({PLAIN: msgspec.convert(found, Group)}) if "threshold" in found else msgspec.convert(found, Gate)
    except msgspec.ValidationError as error:
        raise BundleError(f"the calibration in {bundle.path} does not read ({error}); calibrate again") from None


def save_gate(bundle: Bundle, gate: Gate) -> None:
    """Write the gate into a drafter's bundle, in place of one that is there; the bundle's identity stays the same."""
    write_calibration(bundle, gate)


def calibrate_gate(
    samples: Iterable[Sample],
    groups: Iterable[str],
    *,
    risk: float = 0.05,
    reserve: float = 0.0,
    confidence: float = 0.9,
    agree: str = TOKENS,
    against: str = TARGET,
) -> Gate:
    """The gate of these `groups`, each by its own samples, that promises `risk`, of which `reserve` is held back.

    `agree` is the measure that the samples were compared by, `against` what with.
    """
    by_group: dict[str, list[Sample]] = {group: [] for group in groups}
    for sample in samples:
        by_group[sample.group].append(sample)
    found = {
        name: _calibrated(some, risk=risk, reserve=reserve, confidence=confidence) for name, some in by_group.items()
    }
    return Gate({name: msgspec.structs.replace(one, agree=agree, against=against) for name, one in found.items()})


def _calibrated(samples: Sequence[Sample], *, risk: float, reserve: float, confidence: float) -> Group:
    confidences, agreed = [one.confidence for one in samples], [one.agreed for one in samples]
    group = calibrate_group(confidences, agreed, risk=risk - reserve, confidence=confidence)
    tokens, foreseen = _answers_of(samples)
    passed_tokens, passed_foreseen = _answers_of([one for one in samples if one.confidence < group.threshold])
    return msgspec.structs.replace(
        group,
        risk=risk,
        reserve=reserve,
        populations=_populations(samples, group.threshold),
        tokens=tokens,
        foreseen=foreseen,
        passed_tokens=passed_tokens,
        passed_foreseen=passed_foreseen,
    )


def calibrate_group(
    confidences: Sequence[float], agreed: Sequence[bool], *, risk: float = 0.05, confidence: float = 0.9
) -> Group:
    """The threshold that keeps the most answers among those whose bound holds.

    `confidences` and `agreed` describe the calibration requests of one group, one each: the drafter's confidence in its
    answer, and whether that answer agrees with the one that counts.
    """
    best, kept, disagreed = 2.0, 0, 0
    for sure, count, errors in _thresholds(confidences, agreed):
        # Too few to tell, whatever they are: not yet a test of this threshold.
        if (1 - risk) ** count > 1 - confidence:
            continue
        if binomial_tail(errors, count, risk) > 1 - confidence:
            break
        best, kept, disagreed = sure, count, errors
    return Group(
        threshold=best,
        risk=risk,
        confidence=confidence,
        requests=len(confidences),
        kept=kept,
        disagreed=disagreed,
        needs=None if kept else _needed(confidences, agreed, risk=risk, confidence=confidence),
    )


def _thresholds(confidences: Sequence[float], agreed: Sequence[bool]) -> Iterator[tuple[float, int, int]]:
    """Thresholds from the most confident answer down: each with how many it keeps, and how many of those are wrong."""
    order = np.argsort(-np.asarray(confidences, np.float64), kind="stable")
    scores = np.asarray(confidences, np.float64)[order]
    wrong = np.cumsum(~np.asarray(agreed, bool)[order])
    for end in np.unique(np.linspace(1, len(scores), _STEPS).astype(int)) if len(scores) else ():
        count = int(np.searchsorted(-scores, -scores[end - 1], side="right"))  # ties are kept together
        yield float(scores[count - 1]), count, int(wrong[count - 1])


def _needed(confidences: Sequence[float], agreed: Sequence[bool], *, risk: float, confidence: float) -> int | None:
    """About how many samples more would open a group, if they are like these; None where no number would."""
    least = math.ceil(math.log(1 - confidence) / math.log(1 - risk))  # of which none may be wrong
    if len(confidences) < least:
        return least - len(confidences)
    spread = NormalDist().inv_cdf(max(confidence, 0.5)) * math.sqrt(risk * (1 - risk))
    enough = [
        max(least, (spread / (risk - errors / kept)) ** 2) * len(confidences) / kept
        for _, kept, errors in _thresholds(confidences, agreed)
        if errors / kept < risk
    ]
    return max(1, math.ceil(min(enough)) - len(confidences)) if enough else None


def _populations(samples: Iterable[Sample], threshold: float) -> Mapping[str, Population]:
    found: dict[str, list[Sample]] = {}
    for one in samples:
        if one.population is not None:
            found.setdefault(one.population, []).append(one)
    kept = {name: [one.agreed for one in some if one.confidence >= threshold] for name, some in found.items()}
    return {
        name: Population(requests=len(found[name]), kept=len(some), disagreed=some.count(False))
        for name, some in sorted(kept.items())
    }


def _answers_of(samples: Iterable[Sample]) -> tuple[float | None, float | None]:
    """Tokens of a target's answer, and the share of them that is foreseen: of those up to the first that is not."""
    pairs = [(one.drafted, one.truth) for one in samples if one.truth is not None]
    if not pairs:
        return None, None
    right = [agreeing(ours, theirs) for ours, theirs in pairs]
    wrong = sum(count < len(theirs) for count, (_, theirs) in zip(right, pairs, strict=True))
    return sum(len(theirs) for _, theirs in pairs) / len(pairs), sum(right) / max(1, sum(right) + wrong)
