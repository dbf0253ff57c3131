"""An exchange with a worker that knows the answer: what is sent at every cut, held against the protocol's rules."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Self

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from cutline.core.conversation import question
from cutline.core.request import DRAFT_CHUNK, Mode, Request
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge.generation.detokenizer import Transcript
from cutline.edge.generation.generation import Execution, Generation, Prepared
from cutline.edge.generation.result import DraftedBy, Provenance
from cutline.edge.inference import target_prefix
from cutline.edge.inference.drafter import Drafted, DrafterConversation
from cutline.edge.inference.target_prefix import TargetSpan
from cutline.edge.offload.backends.device_models import DeviceWork
from cutline.edge.offload.backends.worker_session import Exchange
from cutline.errors import WorkerBusy, WorkerFailed
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image
from cutline.models.law.sampling import agreeing
from cutline.models.prompt import PromptBuilder
from cutline.models.vocabulary import Vocabulary
from cutline.protos.messages import Boundary, Confirmed, Draft, Finished, ImageChunk, Open, Opened, Reason

BUNDLE = Bundle.open(TARGET)
MANIFEST = Bundle.open(DRAFTER).manifest
LINE = BUNDLE.manifest.line
STOP = MANIFEST.stop_tokens[0]
REQUEST = next(requests(Split.EVALUATION, 1, seed=3))
PICTURE = decode_image(REQUEST.image)
PIXELS = MANIFEST.family.preprocess(PICTURE)
PROMPT = PromptBuilder.open(BUNDLE).build([question("Describe the card.")], [PIXELS.grid]).ids
TRUTH = (*(int(token) for token in np.random.default_rng(1).integers(10, 400, 40)), STOP)

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

Rows = NDArray[np.float32]


class ScriptedDrafting:
    """A drafter of the answer `TRUTH` which is wrong at every token whose index `wrong` divides by, on any visit."""

    def __init__(self, wrong: int | None) -> None:
        self._wrong = wrong

    def draft(self, answer: Sequence[int], limit: int) -> Iterator[Drafted]:
        for index in range(len(answer), min(len(answer) + limit, len(TRUTH))):
            off = self._wrong is not None and index % self._wrong == self._wrong - 1
            token = TRUTH[index] % 100 + 101 if off else TRUTH[index]
            yield Drafted(token, 0.5)
            if token == STOP:
                return


class ScriptedWorker:
    """Confirms `TRUTH` by the protocol's rules, and holds the row of every token against what it must be.

    At a cut inside the decoder it goes on from a token when it has its row, not before; else it only verifies drafts,
    after the first token.
    """

    def __init__(self, cut: str, *, latency: float = 0.0, refusal: Exception | None = None) -> None:
        self.deep = cut in LINE.deep_cuts
        self.expected = expected_rows(cut) if cut != "image" else np.empty((0, 0), np.float32)
        self.address = "scripted"
        self.latency = latency
        self.refusal = refusal
        self.bytes_up = self.bytes_down = self.given = 0
        self.carried = 0.0
        self.address, self.connected, self.answered, self.heard, self.unproven = "it", True, True, time.monotonic(), 0
        self.finished: Finished | None = None
        self.opening: Open | None = None
        self.metadata = dict[str, str]()
        self.uploaded: list[Boundary | ImageChunk] = []
        self.drafts: list[Draft] = []
        self.answer: list[int] = []
        self.guessed: list[int] = []  # drafted tokens from the end of the answer on
        self.held = 0  # positions whose rows it holds, at a deep cut
        self.events_: asyncio.Queue[Any] = asyncio.Queue()

    def session(
        self, opening: Open, upload: Sequence[Any], *, timeout: float, metadata: Sequence[tuple[str, str]] = ()
    ) -> Self:
        assert not upload
        self.opening = opening
        self.metadata = dict(metadata)
        return self

    async def __aenter__(self) -> Self:
        if self.refusal is not None:
            self.events_.put_nowait(self.refusal)
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def beat(self) -> bool:
        self.heard = time.monotonic()
        return True

    def prove(self, given: int) -> None:
        assert given == self.given

    async def upload(self, piece: Boundary | ImageChunk) -> None:
        assert self.opening is not None
        self.uploaded.append(piece)
        if not piece.last or self.refusal is not None:
            return
        self.events_.put_nowait(Opened("it"))
        self.guessed = list(self.opening.draft)
        if isinstance(piece, Boundary):
            rows = np.concatenate([one.rows for one in self.uploaded if isinstance(one, Boundary)])
            if self.deep:
                tokens = (*self.opening.tokens, *self.opening.draft)
                assert len(rows) == len(tokens)
                self.held = len(tokens)
                self._check(rows, 0, tokens)
            else:
                np.testing.assert_allclose(rows, self.expected, atol=1e-3)
        self._go_on(first=True)

    async def offer(self, draft: Draft) -> None:
        self.drafts.append(draft)
        known = len(PROMPT) + len(self.answer)
        start = draft.position - len(PROMPT)
        assert start >= 0
        assert (draft.rows is not None) == self.deep
        if self.deep:
            assert draft.rows is not None
            if draft.position > self.held or agreeing(draft.tokens, self.answer[start:]) < min(
                len(draft.tokens), len(self.answer) - start
            ):
                return  # stale, and harmless
            self._check(draft.rows, draft.position, draft.tokens)
            self.held = draft.position + len(draft.tokens)
        elif list(draft.tokens[: known - draft.position]) != self.answer[start:]:
            return
        if draft.position <= known:
            self.guessed = list(draft.tokens[known - draft.position :])
        else:
            self.guessed = [*self.guessed[: draft.position - known], *draft.tokens]
        self._go_on(first=False)

    def _check(self, rows: Rows, position: int, tokens: Sequence[int]) -> None:
        """Rows must be right as far as all tokens up to them are."""
        right = agreeing(tokens, (*PROMPT, *TRUTH)[position:])
        np.testing.assert_allclose(rows[:right], self.expected[position : position + right], atol=1e-3)

    def _go_on(self, *, first: bool) -> None:
        """One pass, where there is something to run."""
        known = len(self.answer)
        if self.deep and self.held < len(PROMPT) + known:
            return  # the row of the last token is not there yet
        if not self.deep and not first and not self.guessed:
            return
        right = agreeing(self.guessed, TRUTH[known:])
        new = TRUTH[known : known + right + 1]
        accepted = agreeing(self.guessed, new)
        if not new:
            return
        self.answer += new
        if self.deep and accepted < len(self.guessed):
            self.held = min(self.held, len(PROMPT) + known + accepted)
        self.guessed = self.guessed[len(new) :] if accepted == len(new) else []
        self.events_.put_nowait(Confirmed(len(PROMPT) + known, tuple(new), accepted))
        if self.answer[-1] == STOP:
            self.events_.put_nowait(Finished(Reason.STOP, 1, 1, 0.1))

    async def events(self) -> AsyncIterator[Opened | Confirmed | Finished]:
        while True:
            event = await self.events_.get()
            await asyncio.sleep(self.latency)
            if isinstance(event, Exception):
                raise event
            yield event
            if isinstance(event, Finished):
                return


def expected_rows(cut: str) -> Rows:
    """What must cross at `cut` for the prompt and the whole answer, computed in one go."""
    crossing = TargetSpan.open(BUNDLE, cut, threads=1).converse(PROMPT, [PIXELS])
    return np.concatenate(list(crossing.opening(TRUTH)))


def exchange(
    cut: str, worker: ScriptedWorker, *, drafting: ScriptedDrafting | None, draft: tuple[int, ...] = ()
) -> Generation:
    mode = Mode.CLOUD if cut == "image" else Mode.SPLIT if drafting is None else Mode.DRAFT
    asked = Request.about(REQUEST.image, "Describe the card.", mode=mode, cut=cut, request_id="req-7", trace=TRACE)
    prepared = Prepared(asked, (PICTURE,), (PIXELS,), PROMPT, PROMPT, 64)
    transcript = Transcript(Vocabulary.open(Bundle.open(DRAFTER)))
    progress = Generation(0.0, transcript, stop_tokens=MANIFEST.stop_tokens, limit=64)

    async def run() -> None:
        crossing = None
        if cut != "image":
            crossing = TargetSpan.open(BUNDLE, cut, threads=1).converse(PROMPT, [PIXELS])
        given: Any = drafting
        client: Any = worker
        async with asyncio.timeout(30):
            work = DeviceWork(lambda: None, lambda: given, crossing=crossing, drafting=given)
            way = Execution.unplanned(asked)
            exchange = Exchange(MANIFEST, prepared, way, progress, work)
            await exchange.run(client, "model", draft, DraftedBy.DRAFTER, seconds=30)

    asyncio.run(run())
    return progress


def check(progress: Generation, worker: ScriptedWorker) -> None:
    assert tuple(progress.tokens) == TRUTH == tuple(worker.answer)
    assert worker.opening is not None
    assert worker.opening.grids == (PIXELS.grid,)
    assert (worker.opening.request_id, worker.metadata) == ("req-7", {"traceparent": TRACE})


@pytest.mark.parametrize("latency", [0.0, 0.01])
@pytest.mark.parametrize("wrong", [1, 2, 5, 7, None])
@pytest.mark.parametrize("cut", ["decoder.1", "decoder.3", "head"])
def test_rows_are_right_whatever_was_drafted(cut: str, wrong: int | None, latency: float) -> None:
    worker = ScriptedWorker(cut, latency=latency)
    progress = exchange(cut, worker, drafting=ScriptedDrafting(wrong))
    check(progress, worker)
    assert all(len(draft.tokens) <= DRAFT_CHUNK + 1 for draft in worker.drafts)
    assert progress.drafted <= sum(len(draft.tokens) for draft in worker.drafts)
    if wrong == 1:  # every round settles the token that was chosen for a wrong one
        assert progress.rounds == len(TRUTH)
        assert set(progress.sources) == {Provenance.CLOUD}
    if wrong is None:
        assert progress.rounds <= 2, "the first token may be there before the first draft"


@pytest.mark.parametrize("wrong", [5, 7])
def test_a_wrong_draft_costs_one_round_at_a_cut_inside_the_decoder(wrong: int) -> None:
    worker = ScriptedWorker("decoder.2")
    progress = exchange("decoder.2", worker, drafting=ScriptedDrafting(wrong))
    check(progress, worker)
    assert progress.rounds <= 2 + len(TRUTH) // wrong


def test_without_a_drafter_every_token_is_a_round() -> None:
    worker = ScriptedWorker("decoder.2")
    progress = exchange("decoder.2", worker, drafting=None)
    check(progress, worker)
    assert progress.rounds == len(TRUTH)
    assert progress.drafted == 0
    assert [draft.tokens for draft in worker.drafts] == [(token,) for token in TRUTH[:-1]]
    assert [draft.position for draft in worker.drafts] == [len(PROMPT) + index for index in range(len(TRUTH) - 1)]


@pytest.mark.parametrize("right", [0, 1, 20, len(TRUTH)])
def test_a_whole_draft_opens_a_session_with_its_rows(right: int) -> None:
    draft = (*TRUTH[:right], *((99,) * (len(TRUTH) - right)))
    worker = ScriptedWorker("decoder.2")
    progress = exchange("decoder.2", worker, drafting=ScriptedDrafting(None), draft=draft)
    check(progress, worker)
    assert progress.sources[:right] == [Provenance.DRAFT] * right
    assert progress.rounds == (1 if right == len(TRUTH) else 2)


@pytest.mark.parametrize("cut", ["image", "vision.2", "decoder.0"])
def test_before_the_decoder_drafts_have_no_rows(cut: str) -> None:
    worker = ScriptedWorker(cut)
    check(exchange(cut, worker, drafting=ScriptedDrafting(5)), worker)
    kind = ImageChunk if cut == "image" else Boundary
    assert all(isinstance(piece, kind) for piece in worker.uploaded)


def test_parts_are_sent_as_they_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_prefix, "PREFILL", 10)
    worker = ScriptedWorker("decoder.1")
    check(exchange("decoder.1", worker, drafting=None), worker)
    sizes = [len(piece.rows) for piece in worker.uploaded if isinstance(piece, Boundary)]
    assert sum(sizes) == len(PROMPT)
    assert set(sizes[:-1]) == {10}
    assert [piece.last for piece in worker.uploaded] == [False] * (len(sizes) - 1) + [True]


def test_a_refusal_is_heard_while_the_boundary_is_on_its_way() -> None:
    worker = ScriptedWorker("decoder.1", refusal=WorkerBusy("no room"))
    with pytest.raises(WorkerBusy, match="no room"):
        exchange("decoder.1", worker, drafting=ScriptedDrafting(None))


def test_a_prefix_that_breaks_ends_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = ScriptedWorker("decoder.1", latency=0.01)

    def broken(*_: object) -> Rows:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(target_prefix.Crossing, "again", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        exchange("decoder.1", worker, drafting=ScriptedDrafting(1))


def test_a_worker_that_confirms_nonsense_is_given_up() -> None:
    worker = ScriptedWorker("decoder.1")
    worker.events_.put_nowait(Confirmed(len(PROMPT) + 1, (20,), 0))
    with pytest.raises(WorkerFailed, match="skipped"):
        exchange("decoder.1", worker, drafting=None)


def test_a_real_drafting_has_the_shape_that_is_scripted() -> None:
    assert {name for name in vars(ScriptedDrafting) if not name.startswith("_")} <= set(vars(DrafterConversation))
    assert isinstance(PICTURE, Image.Image)
