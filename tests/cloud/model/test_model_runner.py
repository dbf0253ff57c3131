"""The target on real weights: the law, held against transformers' own forward and generate."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cutline.cloud.engine.cost_model import PACING, Pacing
from cutline.cloud.engine.engine import Engine
from cutline.cloud.engine.sessions.session import Event, Session
from cutline.cloud.engine.sessions.session_request import SessionRequest
from cutline.cloud.engine.sessions.session_rows import SessionRows
from cutline.cloud.model.loader import load_model
from cutline.cloud.model.model_runner import Capacity, Target
from cutline.core.sampling import Sampling
from cutline.demo.bundles import TARGET
from cutline.errors import CutlineError
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image
from cutline.models.law.sampling import choose
from cutline.protos.messages import Confirmed, Draft, Finished, Open, Reason

SLOTS = 5
TOLERANCE = 1e-4
LINE = Bundle.open(TARGET).manifest.line
DEEP = LINE.deep_cuts
Case = tuple[Open, bytes, tuple[int, ...]]


@pytest.fixture(scope="module")
def target(bundle: Bundle) -> Target:
    return Target(bundle, Capacity(slots=SLOTS, context=bundle.manifest.decoder.context))


@pytest.fixture
def engine(bundle: Bundle, target: Target) -> Iterator[Engine]:
    with started(bundle, target) as engine:
        yield engine


@contextmanager
def started(bundle: Bundle, target: Target, pacing: Pacing = PACING) -> Iterator[Engine]:
    engine = Engine(target, bundle.manifest.stop_tokens, pacing=pacing)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


def pixels(bundle: Bundle, image: bytes) -> NDArray[np.float32]:
    return bundle.manifest.family.preprocess(decode_image(image)).values


def request(bundle: Bundle, case: Case, **changes: Any) -> SessionRequest:
    opening, image, _ = case
    asked = SessionRequest(
        tokens=opening.tokens,
        prompt_length=opening.prompt_length,
        max_tokens=opening.max_tokens,
        sampling=Sampling(),
        effort=1.0,
        boundary=pixels(bundle, image),
    )
    return replace(asked, **changes)


def image_rows(target: Target, session: Session) -> torch.Tensor:
    assert session.request.boundary is not None
    return target.encode(session.request.boundary, session.request.cut, ())


class Answering:
    """A request that an engine answers."""

    def __init__(self, engine: Engine, asked: SessionRequest) -> None:
        self.inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.asked = asked
        self.tokens: list[int] = []
        self.accepted = 0
        self.name = engine.open(asked, (), self.inbox.put)

    def step(self) -> Event:
        event = self.inbox.get(timeout=60)
        if isinstance(event, CutlineError):
            raise event
        if isinstance(event, Confirmed):
            assert event.position == len(self.asked.tokens) + len(self.tokens)
            self.tokens += event.tokens
            self.accepted += event.accepted
        return event

    def finish(self) -> Finished:
        while not isinstance(event := self.step(), Finished):
            pass
        return event


def blank(request: SessionRequest, slot: int) -> Session:
    return Session("s", request, slot, 10_000)


@pytest.mark.parametrize("seed", range(8))
def test_logits_are_those_of_transformers_in_any_pass(
    bundle: Bundle, target: Target, unsplit: Any, cases: list[Case], seed: int
) -> None:
    """Sessions of different lengths and cuts, each in chunks of its own, in passes that any of them may sit out."""
    dice = np.random.default_rng(seed)
    todo = []
    for slot, index in enumerate(dice.permutation(len(cases))[: 1 + seed % SLOTS]):
        opening, image, answer = cases[index]
        tokens = (*opening.tokens, *answer)
        # All of the prompt's image stands in the first pass, as the engine makes it.
        first = max(at for at, token in enumerate(tokens) if token == bundle.manifest.image_token) + 1
        cut = ("image", *DEEP)[int(dice.integers(0, 1 + len(DEEP)))]
        session = blank(request(bundle, cases[index], cut=cut), slot)
        tiles = pixels(bundle, image)
        rows = None if cut == "image" else unsplit.rows(tokens, tiles, cut)
        todo.append((session, tokens, rows, 0, first, unsplit.logits(tokens, tiles)))
    while todo:
        batch, images, ahead, expected = [], [], [], []
        for session, tokens, rows, start, least, logits in todo:
            if dice.random() < 0.25:
                ahead.append((session, tokens, rows, start, least, logits))
                continue
            end = min(len(tokens), start + max(least, int(dice.integers(1, 30))))
            drafted = int(dice.integers(0, end - start))
            batch.append(
                SessionRows(session, start, tokens[start:end], drafted, None if rows is None else rows[start:end])
            )
            images.append(image_rows(target, session) if start == 0 and rows is None else None)
            expected.append(logits[end - drafted - 1 : end])
            if end < len(tokens):
                ahead.append((session, tokens, rows, end, 1, logits))
        if batch:
            for got, right in zip(target.run(batch, images), expected, strict=True):
                assert got.dtype == torch.float32
                torch.testing.assert_close(got, right, atol=TOLERANCE, rtol=0)
        todo = ahead


def test_rejected_rows_are_overwritten(bundle: Bundle, target: Target, unsplit: Any, case: Case) -> None:
    opening, image, answer = case
    asked = request(bundle, case)
    tiles = pixels(bundle, image)
    session = blank(asked, 1)
    junk = (7, 8, 9, 10, 11)
    target.run([SessionRows(session, 0, (*opening.tokens, *junk), 5)], [target.encode(tiles, "image", ())])
    after = len(opening.tokens)
    got = target.run([SessionRows(session, after, answer[:2], 1)], [None])[0]
    right = unsplit.logits((*opening.tokens, *answer[:2]), tiles)[-2:]
    torch.testing.assert_close(got, right, atol=TOLERANCE, rtol=0)


def test_sessions_answered_together_give_generates_answers(bundle: Bundle, engine: Engine, cases: list[Case]) -> None:
    """Some with no draft, some with the right one, some with a wrong one; as many at once as there are slots."""
    for begin in range(0, len(cases), SLOTS):
        running = []
        for number, case in enumerate(cases[begin : begin + SLOTS]):
            answer = case[2]
            broken = tuple(token if at % 3 else 5 for at, token in enumerate(answer))
            draft = ((), answer, broken, answer[:2], (9, *answer))[number]
            running.append(Answering(engine, request(bundle, case, draft=draft)))
        for answering, (_, _, answer) in zip(running, cases[begin:], strict=False):
            finished = answering.finish()
            assert tuple(answering.tokens) == answer
            stopped = answer[-1] in bundle.manifest.stop_tokens
            assert finished.reason is (Reason.STOP if stopped else Reason.LENGTH)


@pytest.mark.parametrize("size", [1, 5, 17])
def test_a_prompt_in_pieces_gives_transformers_logits(
    bundle: Bundle, target: Target, unsplit: Any, case: Case, size: int
) -> None:
    """The image's rows go with whichever piece has their tokens; what was drafted comes with the last."""
    opening, image, answer = case
    session = blank(request(bundle, case), 2)
    rows, images = image_rows(target, session), []
    whole = SessionRows(session, 0, (*opening.tokens, *answer[:3]), drafted=3)
    while (piece := whole.first(size)).partial:
        assert 0 < len(piece.tokens) <= size
        assert piece.wanted == 0
        assert target.run([piece], [rows])[0].shape[0] == 0
        images.append(piece.tokens.count(bundle.manifest.image_token))
        whole = replace(whole, start=whole.start + len(piece.tokens), tokens=whole.tokens[len(piece.tokens) :])
    assert piece.drafted == 3
    got = target.run([piece], [rows])[0]
    right = unsplit.logits((*opening.tokens, *answer[:3]), pixels(bundle, image))[-4:]
    torch.testing.assert_close(got, right, atol=TOLERANCE, rtol=0)
    assert sum(images) > 0


def test_prompts_in_pieces_beside_answers_give_generates_answers(
    bundle: Bundle, target: Target, unsplit: Any, cases: list[Case]
) -> None:
    """Of images, of rows from inside the decoder, with drafts and without."""
    running = []
    with started(bundle, target, Pacing(least_prompt_rows=3, most_prompt_rows=7)) as engine:
        for number, case in enumerate(cases[:SLOTS]):
            opening, image, answer = case
            draft = answer if number % 2 else ()
            deep: dict[str, Any] = {}
            if number == 3:
                rows = unsplit.rows((*opening.tokens, *draft), pixels(bundle, image), "decoder.2")
                deep = {"cut": "decoder.2", "deep": True, "boundary": rows, "effort": 0.0}
            running.append((Answering(engine, request(bundle, case, draft=draft, **deep)), answer))
        for answering, answer in running:
            assert answering.finish().passes > len(answering.asked.tokens) // 7
            assert tuple(answering.tokens) == answer


def test_a_right_draft_saves_passes(bundle: Bundle, engine: Engine, case: Case) -> None:
    answer = case[2]
    alone = Answering(engine, request(bundle, case))
    assert alone.finish().passes == len(answer)
    helped = Answering(engine, request(bundle, case, draft=answer))
    assert helped.finish().passes < len(answer) / 2
    assert helped.tokens == alone.tokens
    assert helped.accepted == len(answer)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.8, seed=3),
        Sampling(temperature=0.8, top_p=0.9, seed=4),
        Sampling(temperature=8.0, seed=5),  # so hot that every token is the noise's choice
        Sampling(temperature=8.0, top_k=20, seed=6),
    ],
)
def test_sampled_answers_do_not_depend_on_drafts(
    bundle: Bundle, engine: Engine, unsplit: Any, case: Case, sampling: Sampling
) -> None:
    opening, image, greedy = case
    alone = Answering(engine, request(bundle, case, sampling=sampling))
    alone.finish()
    answer = tuple(alone.tokens)
    assert answer != greedy or sampling.temperature < 1
    for draft in (greedy, answer, tuple(t if at % 4 else 5 for at, t in enumerate(answer))):
        drafted = Answering(engine, request(bundle, case, sampling=sampling, draft=draft))
        drafted.finish()
        assert drafted.tokens == alone.tokens
    # And they are what the law says of transformers' logits.
    logits = unsplit.logits((*opening.tokens, *answer), pixels(bundle, image)).numpy()
    after = len(opening.tokens)
    by_law = [choose(logits[after + at - 1], sampling, after + at) for at in range(len(answer))]
    assert by_law == list(answer)


@pytest.mark.parametrize("cut", LINE.image_cuts[1:])
def test_a_session_may_enter_at_every_cut_before_the_decoder(
    bundle: Bundle, target: Target, engine: Engine, unsplit: Any, cases: list[Case], cut: str
) -> None:
    """The boundary is taken from transformers' own modules, by a hook where the cut is."""
    for case in cases[:4]:
        boundary = unsplit.boundary(pixels(bundle, case[1]), cut)
        answering = Answering(engine, request(bundle, case, cut=cut, boundary=boundary))
        answering.finish()
        assert tuple(answering.tokens) == case[2]


@pytest.mark.parametrize("cut", DEEP)
def test_a_session_may_enter_at_every_cut_inside_the_decoder(
    bundle: Bundle, engine: Engine, unsplit: Any, cases: list[Case], cut: str
) -> None:
    """All at once, beside one that enters at the image. Whoever hears of a token sends its row, and a draft's."""
    sessions = []
    for number, (opening, image, answer) in enumerate(cases[: SLOTS - 1]):
        tiles = pixels(bundle, image)
        believed = (answer, tuple(t if at % 3 else 5 for at, t in enumerate(answer)))[number % 2]
        draft = ((), believed, believed[:2])[number % 3]
        boundary = unsplit.rows((*opening.tokens, *draft), tiles, cut)
        asked = request(bundle, cases[number], cut=cut, deep=True, boundary=boundary, draft=draft, effort=0.0)
        sessions.append((Answering(engine, asked), tiles, believed, answer))
    whole = Answering(engine, request(bundle, cases[SLOTS - 1]))
    for number, (one, tiles, believed, answer) in enumerate(sessions):
        while not isinstance(event := one.step(), Finished):
            if not isinstance(event, Confirmed):
                continue
            known = (*one.asked.tokens, *one.tokens)
            draft = believed[len(one.tokens) : len(one.tokens) + number * 2]
            rows = unsplit.rows((*known, *draft), tiles, cut)[len(known) - 1 :]
            engine.offer(one.name, Draft(len(known) - 1, (known[-1], *draft), rows))
        assert tuple(one.tokens) == answer
    whole.finish()
    assert tuple(whole.tokens) == cases[SLOTS - 1][2]


SPANS = [(start, end) for end in DEEP for start in ("image", "decoder.0", *DEEP) if LINE.place(start) < LINE.place(end)]


@pytest.mark.parametrize(("start", "end"), SPANS)
def test_a_span_makes_the_rows_of_the_cut_where_it_ends(
    bundle: Bundle, unsplit: Any, cases: list[Case], start: str, end: str
) -> None:
    """Two sessions, in chunks."""
    span = Target(bundle, Capacity(slots=2, context=256), layers=(start, end))
    sessions, expected = [], []
    for slot, case in enumerate(cases[:2]):
        opening, image, answer = case
        tokens, tiles = (*opening.tokens, *answer), pixels(bundle, image)
        boundary = {"image": tiles, "decoder.0": unsplit.boundary(tiles, "decoder.0")}.get(start)
        session = blank(request(bundle, case, cut=start, boundary=boundary), slot)
        sessions.append((session, tokens, None if start in LINE.image_cuts else unsplit.rows(tokens, tiles, start)))
        expected.append(unsplit.rows(tokens, tiles, end))
    at = len(cases[0][0].tokens) + 1
    for first, last in ((0, at), (at, at + 1), (at + 1, 10_000)):
        batch = [
            SessionRows(session, first, tokens[first:last], 0, None if rows is None else rows[first:last])
            for session, tokens, rows in sessions
            if tokens[first:last]
        ]
        images = [image_rows(span, rows.session) if first == 0 and rows.boundary is None else None for rows in batch]
        for got, rows, right in zip(span.run(batch, images), batch, expected, strict=False):
            np.testing.assert_allclose(got.numpy(), right[first : first + len(rows.tokens)], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("end", LINE.image_cuts[1:])
@pytest.mark.parametrize("start", LINE.image_cuts[:-1])
def test_a_span_before_the_decoder_makes_the_images_rows(
    bundle: Bundle, unsplit: Any, cases: list[Case], start: str, end: str
) -> None:
    if LINE.place(start) >= LINE.place(end):
        return
    tiles = np.concatenate([pixels(bundle, case[1]) for case in cases[:3]])
    span = Target(bundle, Capacity(slots=1, context=64), layers=(start, end))
    made = span.encode(tiles if start == "image" else unsplit.boundary(tiles, start), start, ())
    # Behind the tower some values are near 200, where seven of float32's steps are more than the tolerance.
    np.testing.assert_allclose(made.numpy(), unsplit.boundary(tiles, end), atol=TOLERANCE, rtol=1e-6)


@pytest.mark.parametrize("start", LINE.layers)
def test_a_span_has_its_own_weights_and_slots_alone(bundle: Bundle, unsplit: Any, start: str) -> None:
    """Every one of the rest would be in memory in vain; together, spans that meet have all of them."""
    place = LINE.place(start)
    layers = LINE.layers[:place], LINE.layers[place:]
    parts = [load_model(bundle, part) for part in layers if part]
    names = [{name for name, _ in part.named_parameters()} for part in parts]
    tied = {"model.text_model.embed_tokens.weight"}
    assert set.union(*names) == {name for name, _ in unsplit.model.named_parameters()}
    if len(names) == 2:
        assert names[0] & names[1] <= tied
        ours = f"model.text_model.layers.{LINE.decoder_layer(start)}."
        if start.startswith("decoder"):
            assert not any(name.startswith(ours) for name in names[0])
            assert any(name.startswith(ours) for name in names[1])
    assert all(
        torch.equal(weight, unsplit.model.get_parameter(name))
        for part in parts
        for name, weight in part.named_parameters()
    )


def test_slots_are_those_of_the_spans_layers(bundle: Bundle) -> None:
    """What a device has resident of the cache is counted by storage."""
    sizes = [
        sum(
            held.untyped_storage().nbytes()
            for held in Target(bundle, Capacity(slots=2, context=64), layers=(start, end))._cache.keys
        )
        for start, end in (("image", "end"), ("decoder.1", "end"), ("image", "decoder.1"), ("image", "decoder.0"))
    ]
    assert sizes == [sizes[0], sizes[0] * 3 // 4, sizes[0] // 4, 0]


def test_a_text_without_image_gives_generates_answer(bundle: Bundle, engine: Engine, unsplit: Any, case: Case) -> None:
    text = tuple(token for token in case[0].tokens if token != bundle.manifest.image_token)
    with torch.inference_mode():
        ids = torch.tensor([text])
        answer = unsplit.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
        )[0, len(text) :].tolist()
    answering = Answering(
        engine, request(bundle, case, tokens=text, prompt_length=len(text), max_tokens=12, boundary=None)
    )
    answering.finish()
    assert answering.tokens == answer


def test_image_tokens_in_drafts_and_answers_are_tokens_like_any_other(
    bundle: Bundle, engine: Engine, unsplit: Any, case: Case
) -> None:
    opening, image, answer = case
    marker = bundle.manifest.image_token
    drafted = Answering(engine, request(bundle, case, draft=(marker, *answer)))
    drafted.finish()
    assert tuple(drafted.tokens) == answer
    # An answer that went on through such a token, replayed: its row is its embedding, as in `generate` step by step.
    tokens = (*opening.tokens, *answer[:1], marker)
    replayed = Answering(engine, request(bundle, case, tokens=tokens, max_tokens=3))
    replayed.finish()
    with torch.inference_mode():
        first = unsplit.model(
            input_ids=torch.tensor([opening.tokens]),
            pixel_values=torch.from_numpy(pixels(bundle, image))[None],
            use_cache=True,
        )
        then = unsplit.model(input_ids=torch.tensor([tokens[-2:]]), cache=first.past_key_values)
    assert replayed.tokens == [int(then.logits[0, -1].argmax())]


def test_an_answer_ends_where_the_context_does(bundle: Bundle, case: Case) -> None:
    opening, _, answer = case
    context = len(opening.tokens) + len(answer) // 2
    engine = Engine(Target(bundle, Capacity(slots=1, context=context)), bundle.manifest.stop_tokens)
    engine.start()
    try:
        for draft in ((), answer):
            answering = Answering(engine, request(bundle, case, draft=draft))
            assert answering.finish().reason is Reason.LENGTH
            assert tuple(answering.tokens) == answer[: len(answer) // 2]
    finally:
        engine.stop()
