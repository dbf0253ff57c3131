"""Answers with penalties, a model's own and a request's: those of `generate`, whatever was drafted or replayed."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from cutline.cloud.engine.engine import Engine
from cutline.cloud.engine.sampler import choose_all
from cutline.cloud.engine.sessions.session import Event, Session
from cutline.cloud.engine.sessions.session_request import SessionRequest
from cutline.cloud.engine.sessions.session_rows import SessionRows
from cutline.cloud.model.model_runner import Capacity, Target
from cutline.cloud.serving.admission import ReceivedUpload, Reception, ServedSpan
from cutline.core.sampling import Sampling
from cutline.errors import CutlineError
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image
from cutline.models.law.penalties import NO_PENALTIES, Past, Penalties
from cutline.models.law.sampling import choose
from cutline.protos.messages import Confirmed, Finished, Open

Case = tuple[Open, bytes, tuple[int, ...]]
LENGTH = 24
MODELS = [
    Penalties(repetition_penalty=8.0),
    Penalties(no_repeat_ngram_size=2),
    Penalties(bad_words_ids=((331,), (263, 270)), suppress_tokens=(290,), begin_suppress_tokens=(300,)),
    Penalties(min_new_tokens=20),
]


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> Iterator[Engine]:
    engine = Engine(
        Target(bundle, Capacity(slots=4, context=bundle.manifest.decoder.context)), bundle.manifest.stop_tokens
    )
    engine.start()
    yield engine
    engine.stop()


def generated(unsplit: Any, case: Case, penalties: Penalties, stops: tuple[int, ...], **more: Any) -> tuple[int, ...]:
    """What transformers' own `generate` says."""
    opening, image, _ = case
    said: dict[str, Any] = msgspec.to_builtins(penalties)
    if "bad_words_ids" in said:
        said["bad_words_ids"] = [list(word) for word in said["bad_words_ids"]]
    ids = torch.tensor([opening.tokens])
    made = unsplit.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=torch.from_numpy(unsplit.pixels(image))[None],
        max_new_tokens=LENGTH,
        do_sample=False,
        eos_token_id=list(stops),
        **said,
        **more,
    )
    return tuple(made[0, len(opening.tokens) :].tolist())


def request(unsplit: Any, case: Case, penalties: Penalties, **changes: Any) -> SessionRequest:
    opening, image, _ = case
    asked = SessionRequest(
        tokens=opening.tokens,
        prompt_length=len(opening.tokens),
        max_tokens=LENGTH,
        sampling=Sampling(),
        effort=1.0,
        boundary=unsplit.pixels(image),
        penalties=penalties,
    )
    return replace(asked, **changes)


def answered(engine: Engine, asked: SessionRequest) -> tuple[int, ...]:
    inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
    engine.open(asked, (), inbox.put)
    tokens = list(asked.tokens[asked.prompt_length :])
    while not isinstance(event := inbox.get(timeout=60), Finished):
        if isinstance(event, CutlineError):
            raise event
        if isinstance(event, Confirmed):
            tokens += event.tokens
    return tuple(tokens)


@pytest.mark.parametrize("penalties", MODELS, ids=["repetition", "n-grams", "words", "length"])
def test_answers_are_those_of_generate(
    bundle: Bundle, engine: Engine, unsplit: Any, cases: list[Case], penalties: Penalties
) -> None:
    """Alone, with a right and with a wrong draft, replayed from the middle, and at a cut inside the decoder."""
    # An answer that ends early, where it may not; a long one for all else.
    case = sorted(cases, key=lambda one: len(one[2]))[0 if penalties.min_new_tokens else -1]
    plain = case[2][:LENGTH]
    expected = generated(unsplit, case, penalties, bundle.manifest.stop_tokens)
    assert expected != plain  # or nothing is tried here
    wrong = tuple(token if at % 3 else 5 for at, token in enumerate(expected))
    opening, image, _ = case
    half = (*opening.tokens, *expected[: len(expected) // 2])
    draft = expected[:4]
    rows = unsplit.rows((*opening.tokens, *draft), unsplit.pixels(image), "decoder.2")
    deep: dict[str, Any] = {"cut": "decoder.2", "deep": True, "boundary": rows, "effort": 0.0, "max_tokens": len(draft)}
    assert answered(engine, request(unsplit, case, penalties)) == expected
    for drafted in (expected, wrong, plain):
        assert answered(engine, request(unsplit, case, penalties, draft=drafted)) == expected
    assert answered(engine, request(unsplit, case, penalties, tokens=half)) == expected
    assert answered(engine, request(unsplit, case, penalties, draft=draft, **deep)) == draft


@pytest.mark.parametrize(
    ("sampling", "theirs"),
    [
        (Sampling(repetition_penalty=8.0), {"repetition_penalty": 8.0}),
        (Sampling(logit_bias=((331, -100.0), (290, 2.5))), {"sequence_bias": {(331,): -100.0, (290,): 2.5}}),
    ],
    ids=["repetition", "bias"],
)
def test_a_requests_penalties_are_those_of_generate(
    bundle: Bundle, engine: Engine, unsplit: Any, case: Case, sampling: Sampling, theirs: dict[str, Any]
) -> None:
    """A repetition penalty stands in place of the model's own."""
    penalties, stops = Penalties(repetition_penalty=1.7), bundle.manifest.stop_tokens
    own = {} if sampling.repetition_penalty else {"repetition_penalty": 1.7}
    expected = generated(unsplit, case, NO_PENALTIES, stops, **own, **theirs)
    assert expected != generated(unsplit, case, penalties, stops)
    asked = request(unsplit, case, penalties, sampling=sampling)
    for draft in ((), expected, case[2][:LENGTH]):
        assert answered(engine, replace(asked, draft=draft)) == expected
    half = (*asked.tokens, *expected[: len(expected) // 2])
    assert answered(engine, replace(asked, tokens=half)) == expected


def test_an_answer_ends_at_the_tokens_that_a_request_names(
    bundle: Bundle, engine: Engine, unsplit: Any, case: Case
) -> None:
    """As `generate`'s does that is given them as ends; not before the model lets any answer end."""
    plain, stops = case[2][:LENGTH], bundle.manifest.stop_tokens
    for named, penalties in ((plain[4], NO_PENALTIES), (plain[0], Penalties(min_new_tokens=6))):
        expected = generated(unsplit, case, penalties, (*stops, named))
        if penalties == NO_PENALTIES:
            assert expected == plain[: plain.index(named) + 1] != plain
        else:
            assert named not in expected[: penalties.min_new_tokens]
        asked = request(unsplit, case, penalties, sampling=Sampling(stop_token_ids=(named,)))
        for draft in ((), expected, plain, (*expected, 5, 6)):
            assert answered(engine, replace(asked, draft=draft)) == expected
        assert answered(engine, replace(asked, tokens=(*asked.tokens, *expected[:2]))) == expected


def test_sampled_answers_are_what_the_law_says_of_penalised_logits(
    bundle: Bundle, engine: Engine, unsplit: Any, case: Case
) -> None:
    sampling = Sampling(temperature=1.5, seed=3, min_p=0.02, presence_penalty=0.7, frequency_penalty=-0.4)
    penalties = Penalties(repetition_penalty=1.5, no_repeat_ngram_size=2)
    asked = request(unsplit, case, penalties, sampling=sampling)
    answer = answered(engine, asked)
    assert answered(engine, replace(asked, draft=answer)) == answer
    logits = unsplit.logits((*asked.tokens, *answer), unsplit.pixels(case[1])).numpy()
    first, stops = len(asked.tokens), bundle.manifest.stop_tokens
    past = Past(penalties, asked.tokens, sampling=sampling, first=first, stop_tokens=stops, like=logits[0])
    for at, token in enumerate(answer):
        assert choose(past.penalised(logits[first + at - 1]), sampling, first + at) == token
        past.extend([token])


def test_a_worker_takes_its_models_penalties(bundle: Bundle, case: Case) -> None:
    opening, image, _ = case
    penalties = Penalties(repetition_penalty=1.05)
    manifest = msgspec.structs.replace(bundle.manifest, penalties=penalties)
    reception = Reception(manifest, ServedSpan(context=manifest.decoder.context))
    made = reception.request(replace(opening, model=manifest.identity), ReceivedUpload("", (), files=(image,)))
    assert made.penalties == penalties
    assert decode_image(image).size  # it was read


def test_a_pass_that_broke_leaves_nothing_behind() -> None:
    """Tokens that were chosen but not confirmed are forgotten when the rows run again."""
    asked = SessionRequest(
        tokens=(1, 2),
        prompt_length=2,
        max_tokens=9,
        sampling=Sampling(),
        effort=1.0,
        penalties=Penalties(repetition_penalty=2.0),
    )
    session = Session("s", asked, 0, 20)
    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 2, (4, 8)).astype(np.float32))
    alone = choose_all(SessionRows(session, 0, (1, 2), 0), logits[:1], ())
    drafted = tuple(choose_all(SessionRows(session, 0, (1, 2, *alone), 1), logits[:2], ())[:1])
    assert drafted == tuple(alone)
    first = choose_all(SessionRows(session, 0, (1, 2, *alone, 3, 4), 3), logits, ())
    assert choose_all(SessionRows(session, 0, (1, 2, *alone, 3, 4), 3), logits, ()) == first
    assert choose_all(SessionRows(session, 0, (1, 2), 0), logits[:1], ()) == alone
