"""What the agent believes of an answer, as drafts go out and replies come in."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutline.core.request import Mode, Request
from cutline.core.wire import Wire
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.edge.generation.detokenizer import Transcript
from cutline.edge.generation.generation import Belief, Execution, Generation, SentDraft
from cutline.edge.generation.result import DraftedBy, Provenance
from cutline.models.bundle import Bundle
from cutline.models.law.sampling import agreeing
from cutline.models.vocabulary import Vocabulary
from cutline.protos.messages import Likelihood, Opened

tokens = st.lists(st.integers(0, 2), max_size=8).map(tuple)

TRANSCRIPT = Transcript(Vocabulary.open(Bundle.open(DRAFTER)))


@st.composite
def beliefs(draw: st.DrawFn) -> Belief:
    believed = draw(tokens)
    return Belief(believed, draw(st.integers(0, len(believed))), draw(st.booleans()))


def test_what_is_made_anew_keeps_how_likely_its_tokens_were() -> None:
    """Also of one that was left out of the text, as the beginning of a word to stop at."""
    vocabulary = Vocabulary.open(Bundle.open(DRAFTER))
    ids = vocabulary.encode("seven apples and")
    stop = vocabulary.decode(ids[-2:]).strip()
    progress = Generation(0.0, Transcript(vocabulary, [stop]))
    for place, token in enumerate(ids[:-1]):
        progress.settle([token], [Provenance.CLOUD], [Likelihood(-0.5 * place, ())])
    progress.settle(ids[-1:], [Provenance.EDGE])
    assert progress.over
    again = progress.anew(len(ids) - 1)
    again.settle(ids[:1], [Provenance.CLOUD], [Likelihood(-9.0, ())])
    again.finish()
    logprobs = [*(-0.5 * place for place in range(len(ids) - 1)), -9.0]
    assert [one.logprob for one in again.transcript.tokens] == logprobs
    again.opened, again.sent, again.reused_images = (1.0, Opened("it", reused=7)), [(0.5, 10)], 1
    progress.opened, progress.reused_images = (0.1, Opened("lost", reused=99)), 2
    progress.take(again)
    assert (progress.opened, progress.sent, progress.reused_images) == (again.opened, [(0.5, 10)], 1)
    assert [one.logprob for one in progress.likelihoods if one is not None] == logprobs


@given(belief=beliefs(), settled=tokens)
def test_what_is_settled_is_believed(belief: Belief, settled: tuple[int, ...]) -> None:
    after = belief.after(settled)
    assert after.tokens[: len(settled)] == settled
    assert after.after(settled) is after
    if after is belief:
        assert belief.tokens[: len(settled)] == settled, "nothing new"
    else:
        assert (after.tokens, after.replying) == (settled, True)


@given(belief=beliefs(), settled=tokens)
def test_only_what_was_right_counts_as_sent(belief: Belief, settled: tuple[int, ...]) -> None:
    after = belief.after(settled)
    assert after.sent <= min(belief.sent, len(after.tokens))
    assert after.tokens[: after.sent] == belief.tokens[: after.sent]
    if after is not belief:
        assert after.sent == min(belief.sent, agreeing(belief.tokens, settled))


@given(belief=beliefs(), draft=tokens)
def test_a_draft_that_is_sent_is_believed_until_a_reply(belief: Belief, draft: tuple[int, ...]) -> None:
    grown = belief.grown(draft)
    assert grown.tokens == (*belief.tokens, *draft)
    assert grown.sent == len(grown.tokens)
    assert not grown.replying
    assert grown.after(belief.tokens) is grown


@given(answer=st.lists(st.integers(0, 1), max_size=8), seeds=st.lists(st.tuples(tokens, st.integers(0, 8)), max_size=5))
def test_the_record_of_drafts_counts_each_place_once(
    answer: list[int], seeds: list[tuple[tuple[int, ...], int]]
) -> None:
    drafts = [(min(start, len(tokens)), tokens) for tokens, start in seeds]
    sent = [SentDraft(start, tokens, DraftedBy.DRAFTER) for start, tokens in drafts]
    sent.append(SentDraft(0, (9,), DraftedBy.RECENT))  # which is another's record
    right, tried = Generation(
        0.0, Transcript(Vocabulary.open(Bundle.open(DRAFTER))), tokens=answer, drafts=sent
    ).record(DraftedBy.DRAFTER)
    expected: dict[int, bool] = {}
    for place in range(len(answer)):
        for start, believed in drafts:
            # A word on this place: drafted, and all that it builds on was right.
            if start <= place < len(believed) and list(believed[:place]) == answer[:place]:
                expected.setdefault(place, believed[place] == answer[place])
    assert (right, tried) == (sum(expected.values()), len(expected))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(
    ("cut", "changes", "exact"),
    [
        ("image", {}, True),
        ("vision.1", {}, True),
        ("decoder.0", {}, True),
        ("decoder.2", {}, None),  # of the target's own weights, if its bundle has them
        ("decoder.0", {"wire": Wire.FLOAT16}, False),
        ("decoder.0", {"keep_image_tokens": 0.5}, False),
        ("decoder.0", {"noise": 0.1}, False),
    ],
)
def test_an_answer_is_exact_where_nothing_changed_what_crosses(
    precision: str, cut: str, changes: dict[str, Any], exact: bool | None
) -> None:
    manifest = msgspec.structs.replace(Bundle.open(TARGET, "device").manifest, precision=precision)
    request = Request.about(b"", "Which?", mode=Mode.SPLIT, cut=cut, **changes)
    found = Execution.unplanned(request).is_exact(request, manifest)
    assert found == (precision == "fp32" if exact is None else exact)
