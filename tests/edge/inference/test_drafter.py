from __future__ import annotations

from itertools import islice
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from cutline.core.conversation import question
from cutline.core.sampling import Sampling
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge.inference.decoder import Decoder
from cutline.edge.inference.drafter import Drafted, Drafter, DrafterConversation, likelihood_of, likelihoods_of
from cutline.edge.inference.vision_encoder import VisionSpan
from cutline.errors import BundleError
from cutline.models.bundle import Bundle
from cutline.models.images import Pixels, decode_image
from cutline.models.law.penalties import Penalties
from cutline.models.law.sampling import choose
from cutline.models.prompt import PromptBuilder

BUNDLE = Bundle.open(DRAFTER)
DRAFTER_ = Drafter.open(BUNDLE, threads=1)
MANIFEST = BUNDLE.manifest
CONTEXT = MANIFEST.decoder.context

REQUEST = next(one for one in requests(Split.EVALUATION, 1, seed=3) if one.question.kind == "describe")
PIXELS = MANIFEST.family.preprocess(decode_image(REQUEST.image))
PROMPT = PromptBuilder.open(BUNDLE).build([question(REQUEST.question.text)], [PIXELS.grid]).ids

samplings = st.sampled_from([Sampling(), Sampling(temperature=0.8, seed=3), Sampling(temperature=1.5, top_k=7, seed=9)])
# The demo's drafter is quantized, and so its logits depend a little on which rows are computed together: where that
# must not matter, a float32 model with seeded weights stands in.
SEEDED_PROMPT = (1, 40, 41, *[3] * 16, 50, 61, 72)
SEEDED_PIXELS = Pixels(np.random.default_rng(0).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32), (0, 0))
answers = st.lists(st.integers(4, 199), max_size=12)


@pytest.fixture(scope="module")
def seeded(bundle: Bundle) -> Drafter:
    return Drafter.open(bundle, threads=1)


def converse(sampling: Sampling | None = None) -> DrafterConversation:
    return DRAFTER_.converse(PROMPT, [PIXELS], sampling or Sampling())


def tokens(drafted: list[Drafted]) -> list[int]:
    return [one.token for one in drafted]


def alike(one: list[Drafted], other: list[Drafted]) -> bool:
    """The same tokens; probabilities may differ in the last bits, as rows are computed alone or together."""
    return tokens(one) == tokens(other) and bool(
        np.allclose([a.probability for a in one], [b.probability for b in other], rtol=1e-3, atol=1e-6)
    )


@settings(max_examples=40, deadline=None)
@given(
    turns=st.lists(st.tuples(answers, st.integers(0, 6), st.integers(0, 20)), min_size=1, max_size=5),
    sampling=samplings,
)
def test_whatever_came_before_a_draft_is_that_of_a_new_conversation(
    seeded: Drafter, turns: list[tuple[list[int], int, int]], sampling: Sampling
) -> None:
    """Each turn goes on from part of the last turn's draft, with other tokens after it, and is left at any token."""

    def anew() -> DrafterConversation:
        return seeded.converse(SEEDED_PROMPT, [SEEDED_PIXELS], sampling)

    drafting, before = anew(), list[int]()
    for novel, kept, asked in turns:
        answer = before[:kept] + novel
        drafted = list(islice(drafting.draft(answer, 8), asked))
        assert alike(drafted, list(islice(anew().draft(answer, 8), asked)))
        before = answer + tokens(drafted)


@settings(max_examples=20, deadline=None)
@given(answer=answers, sampling=samplings)
def test_logits_are_what_is_drafted_from(seeded: Drafter, answer: list[int], sampling: Sampling) -> None:
    def anew() -> DrafterConversation:
        return seeded.converse(SEEDED_PROMPT, [SEEDED_PIXELS], sampling)

    drafting = anew()
    logits = drafting.logits(answer)
    assert logits.shape == (len(answer) + 1, 200)
    for length, row in enumerate(logits):
        (first,) = islice(anew().draft(answer[:length], 1), 1)
        expected = choose(row, sampling, len(SEEDED_PROMPT) + length)
        probabilities = np.exp(row.astype(np.float64) - row.max())
        probabilities /= probabilities.sum()
        assert first.token == expected
        assert first.probability == pytest.approx(probabilities[expected], rel=1e-3, abs=1e-6)
    # Asking for logits leaves the conversation as good as new.
    assert alike(list(drafting.draft((), 6)), list(anew().draft((), 6)))


@pytest.mark.parametrize("limit", [0, 1, 2, 5, 64])
def test_a_draft_ends_at_its_limit_or_at_the_stop_token(limit: int) -> None:
    whole = tokens(list(converse().draft((), 64)))
    assert tokens(list(converse().draft((), limit))) == whole[:limit]
    ends = [index for index, token in enumerate(whole) if token in MANIFEST.stop_tokens]
    assert ends in ([], [len(whole) - 1])


def test_a_stop_token_ends_the_draft() -> None:
    whole = tokens(list(converse().draft((), 64)))
    last = whole.index(whole[3])
    stopping = converse()
    stopping._stop_tokens = frozenset([whole[3]])
    assert tokens(list(stopping.draft((), 64))) == whole[: last + 1]


def test_a_draft_ends_where_the_context_does() -> None:
    never = converse(Sampling(temperature=50.0, seed=1))
    never._stop_tokens = frozenset()
    answer = [10 + index % 100 for index in range(CONTEXT - len(PROMPT) - 3)]
    # Tokens stand at positions up to the context's last; one more may be chosen but never fed.
    assert len(list(never.draft(answer, 100))) == 4
    full = [*answer, 20, 21, 22]
    assert len(list(never.draft(full, 100))) == 1
    assert len(list(never.draft((), 5))) == 5, "a full state rolls back like any other"


def test_conversations_do_not_disturb_each_other() -> None:
    alone = list(converse().draft((), 12))
    first, second = converse(), converse(Sampling(temperature=2.0, seed=5))
    mixed, one = [], first.draft((), 12)
    other = second.draft((), 64)
    for drafted in one:
        mixed.append(drafted)
        next(other, None)
    assert tokens(mixed) == tokens(alone)


def test_text_alone_needs_no_tiles() -> None:
    words = [token for token in PROMPT if token != MANIFEST.image_token]
    assert list(DRAFTER_.converse(words, (), Sampling()).draft((), 4))


@given(
    logits=st.lists(st.integers(-40, 40).map(lambda tenth: tenth / 10), min_size=1, max_size=30),
    data=st.data(),
    alternatives=st.integers(0, 35),
)
def test_likelihoods_are_those_of_a_softmax(logits: list[float], data: st.DataObject, alternatives: int) -> None:
    token = data.draw(st.integers(0, len(logits) - 1))
    found = likelihood_of(np.array(logits, np.float32), token, alternatives)
    expected = log_softmax(np.array(logits, np.float32).astype(np.float64))
    assert found.logprob == pytest.approx(expected[token], abs=1e-9)
    ranked = sorted(range(len(logits)), key=lambda one: (-logits[one], one))[:alternatives]
    assert [one for one, _ in found.alternatives] == ranked
    assert [of for _, of in found.alternatives] == pytest.approx(expected[ranked].tolist(), abs=1e-9)
    assert all(of <= 0.0 for _, of in found.alternatives)


def test_a_draft_tells_likelihoods_where_they_are_asked_for() -> None:
    sampling = Sampling(temperature=1.3, top_k=5, seed=2)
    plain = list(converse(sampling).draft((), 8))
    told = list(DRAFTER_.converse(PROMPT, [PIXELS], sampling, alternatives=2).draft((), 8))
    assert tokens(told) == tokens(plain)
    assert likelihoods_of(plain) == []
    for one, likelihood in zip(told, likelihoods_of(told), strict=True):
        assert np.exp(likelihood.logprob) == pytest.approx(one.probability, rel=1e-6)  # at temperature 1
        assert len(likelihood.alternatives) == 2


def test_a_targets_bundle_is_no_drafter() -> None:
    with pytest.raises(BundleError, match="drafter"):
        Drafter.open(Bundle.open(TARGET), threads=1)


def test_a_draft_keeps_to_the_penalties_of_its_model(bundle: Bundle, reference: Any) -> None:
    """Its tokens are those of transformers' `generate`, image tokens of the prompt counted too, from any point on."""
    penalties = Penalties(repetition_penalty=1.6, no_repeat_ngram_size=2, bad_words_ids=((7,), (9, 11)))
    manifest = msgspec.structs.replace(bundle.manifest, penalties=penalties)
    whole = Drafter.open(bundle, threads=1)
    penal = Drafter(manifest, VisionSpan.open(bundle, "decoder.0", threads=1), Decoder.open(bundle, threads=1))
    ids = torch.tensor([SEEDED_PROMPT])
    said: dict[str, Any] = {"repetition_penalty": 1.6, "no_repeat_ngram_size": 2, "bad_words_ids": [[7], [9, 11]]}
    made = reference.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=torch.from_numpy(SEEDED_PIXELS.values)[None],
        max_new_tokens=16,
        do_sample=False,
        **said,
    )
    expected = made[0, len(SEEDED_PROMPT) :].tolist()
    assert tokens(list(penal.converse(SEEDED_PROMPT, [SEEDED_PIXELS], Sampling()).draft((), 16))) == expected
    assert tokens(list(whole.converse(SEEDED_PROMPT, [SEEDED_PIXELS], Sampling()).draft((), 16))) != expected
    drafting = penal.converse(SEEDED_PROMPT, [SEEDED_PIXELS], Sampling())
    assert list(islice(drafting.draft((50, 51), 4), 3))
    assert tokens(list(drafting.draft(expected[:5], 11))) == expected[5:]
