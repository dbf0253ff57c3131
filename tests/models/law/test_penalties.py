"""A model's own penalties against transformers' logits processors, over whole sequences, in NumPy and in torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from cutline.core.sampling import Sampling
from cutline.demo.bundles import TARGET
from cutline.models.bundle import Bundle, read_manifest, write_manifest
from cutline.models.law.penalties import NO_PENALTIES, Past, Penalties

VOCABULARY = 12
STOPS = (1, 2)
MODEL: Any = LlamaForCausalLM(
    LlamaConfig(vocab_size=VOCABULARY, hidden_size=4, num_hidden_layers=0, num_attention_heads=1)
)
token = st.integers(0, VOCABULARY - 1)
tokens = st.lists(token, max_size=4).map(tuple)
penalties = st.builds(
    Penalties,
    repetition_penalty=st.sampled_from([1.0, 1.05, 8.0, 0.7]),
    no_repeat_ngram_size=st.integers(0, 4),
    bad_words_ids=st.lists(st.lists(token, min_size=1, max_size=3).map(tuple), max_size=4).map(tuple),
    suppress_tokens=tokens,
    begin_suppress_tokens=tokens,
    min_length=st.integers(0, 12),
    min_new_tokens=st.integers(0, 6),
)


class Theirs:
    """transformers' processors of the same settings, in the order in which `generate` applies them."""

    def __init__(self, penalties: Penalties, sampling: Sampling, prompt: int) -> None:
        said: dict[str, Any] = msgspec.to_builtins(penalties)
        said.setdefault("repetition_penalty", 1.0)
        if sampling.repetition_penalty is not None:
            said["repetition_penalty"] = sampling.repetition_penalty
        if sampling.logit_bias:
            said["sequence_bias"] = {(token,): value for token, value in sampling.logit_bias}
        words = [list(word) for word in said.pop("bad_words_ids", ())]
        config = GenerationConfig(eos_token_id=list(STOPS), **said, **({"bad_words_ids": words} if words else {}))
        MODEL._prepare_special_tokens(config, kwargs_has_attention_mask=True, device=torch.device("cpu"))
        self.processors = MODEL._get_logits_processor(config, input_ids_seq_length=prompt)

    def __call__(self, before: list[int], logits: np.ndarray) -> np.ndarray:
        made: np.ndarray = self.processors(torch.tensor([before]), torch.from_numpy(logits.copy())[None])[0].numpy()
        return made


biases = st.dictionaries(token, st.floats(-100, 100, width=32), max_size=4).map(lambda found: tuple(found.items()))
samplings = st.builds(
    Sampling, repetition_penalty=st.none() | st.sampled_from([1.0, 1.3, 0.5]), logit_bias=st.just(()) | biases
)


@given(penalties, samplings, st.lists(token, min_size=1, max_size=8), st.lists(token, max_size=8), st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_every_penalty_is_that_of_transformers(
    penalties: Penalties, sampling: Sampling, prompt: list[int], answer: list[int], seed: int
) -> None:
    words = tuple(word for word in penalties.bad_words_ids if len(word) > 1 or word[0] not in STOPS)
    penalties = msgspec.structs.replace(penalties, bad_words_ids=words)
    theirs, dice = Theirs(penalties, sampling, len(prompt)), np.random.default_rng(seed)
    like = np.zeros(VOCABULARY, np.float32)
    ours = [
        Past(
            penalties,
            prompt,
            sampling=sampling,
            first=len(prompt),
            stop_tokens=STOPS,
            like=xp.asarray(like),
            xp=xp,
        )
        for xp in (np, torch)
    ]
    for done in range(len(answer) + 1):
        logits = dice.normal(0, 3, VOCABULARY).astype(np.float32)
        given = logits.copy()
        expected = theirs([*prompt, *answer[:done]], logits)
        found = ours[0].penalised(logits), ours[1].penalised(torch.from_numpy(logits)).numpy()
        assert found[0].dtype == np.float32
        assert found[0].tobytes() == found[1].tobytes() == expected.tobytes()
        assert np.array_equal(logits, given)  # which likelihoods are told of
        for past in ours:
            past.extend(answer[done : done + 1])


@given(
    st.floats(-2, 2, width=32),
    st.floats(-2, 2, width=32),
    st.lists(token, min_size=1, max_size=8),
    st.lists(token, max_size=8),
)
def test_presence_and_frequency_are_openais_formula_and_count_the_answer_alone(
    presence: float, frequency: float, prompt: list[int], answer: list[int]
) -> None:
    """`logits[token] -= count * frequency + (count > 0) * presence`."""
    logits = np.random.default_rng(len(answer)).normal(0, 3, VOCABULARY).astype(np.float32)
    expected = [logits[one] - answer.count(one) * frequency - (one in answer) * presence for one in range(VOCABULARY)]
    sampling = Sampling(presence_penalty=presence, frequency_penalty=frequency)
    found = []
    for xp, given_logits in ((np, logits), (torch, torch.from_numpy(logits))):
        how: Any = {"first": len(prompt), "stop_tokens": STOPS, "like": given_logits, "xp": xp}
        past = Past(NO_PENALTIES, prompt, sampling=sampling, **how)
        past.extend(answer)
        found.append(np.asarray(past.penalised(given_logits)))
    assert found[0].tobytes() == found[1].tobytes()
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-5)


@given(penalties, st.lists(token, min_size=1, max_size=8), st.lists(token, max_size=8))
def test_tokens_taken_at_once_are_those_taken_one_by_one(
    penalties: Penalties, prompt: list[int], answer: list[int]
) -> None:
    logits = np.linspace(-1, 1, VOCABULARY, dtype=np.float32)
    whole, slow = (Past(penalties, prompt, first=len(prompt), stop_tokens=STOPS, like=logits) for _ in range(2))
    whole.extend(answer)
    for one in answer:
        slow.extend([one])
    assert np.array_equal(whole.penalised(logits), slow.penalised(logits))


@given(penalties, st.lists(st.integers(0, VOCABULARY), max_size=12), st.lists(token, max_size=12))
@example(Penalties(repetition_penalty=8.0, no_repeat_ngram_size=2), [5, VOCABULARY], [5])
def test_a_token_of_a_prompt_that_is_never_chosen_is_neither_lowered_nor_banned(
    penalties: Penalties, prompt: list[int], answer: list[int]
) -> None:
    """As if the logits had one more, which nobody looks at."""
    logits = np.linspace(-2, 3, VOCABULARY + 1, dtype=np.float32)
    ours, wider = (
        Past(penalties, prompt, first=len(prompt), stop_tokens=STOPS, like=like) for like in (logits[:-1], logits)
    )
    for one in (ours, wider):
        one.extend(answer)
    np.testing.assert_array_equal(ours.penalised(logits[:-1]), wider.penalised(logits)[:-1])


def test_a_manifest_without_penalties_says_nothing_of_them(tmp_path: Path) -> None:
    """So a bundle from before there were any keeps its identity; they are a part of that."""
    manifest = Bundle.open(TARGET).manifest
    assert manifest.penalties == NO_PENALTIES
    assert "penalties" not in msgspec.to_builtins(manifest)
    (tmp_path / "tokenizer.json").write_text("{}")
    plain = write_manifest(tmp_path, manifest)
    other = write_manifest(tmp_path, msgspec.structs.replace(manifest, penalties=Penalties(repetition_penalty=1.05)))
    assert other.identity != plain.identity
    assert read_manifest(tmp_path).penalties == other.penalties
