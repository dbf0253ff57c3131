"""What goes to a worker and what need not, before a worker over gRPC that keeps images and tells what it received."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import numpy as np
import pytest

from cutline.core.conversation import ImagePart, Message, TextPart
from cutline.core.request import Mode, Request
from cutline.core.wire import Wire
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.edge.agent import Agent, AgentSettings
from cutline.edge.generation import preprocess
from cutline.edge.generation.result import Answer
from cutline.edge.inference.vision_encoder import VisionSpan
from cutline.errors import WorkerForgot
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image
from cutline.protos.codec import agent_from_wire, description_to_wire, worker_to_wire
from cutline.protos.digests import image_digest, rows_digest
from cutline.protos.messages import Boundary, Confirmed, Finished, ImageChunk, Open, Opened, Reason
from cutline.protos.v1 import worker_pb2_grpc
from cutline.testing.worker import DESCRIPTION

DRAFTS, BUNDLE = Bundle.open(DRAFTER), Bundle.open(TARGET)
FAMILY, STOP = BUNDLE.manifest.family, BUNDLE.manifest.stop_tokens[0]
FILES = list(dict.fromkeys(one.image for one in requests(Split.EVALUATION, 3, seed=3)))


@dataclass
class KeepingWorker(worker_pb2_grpc.WorkerServicer):
    """Answers with one token, by the protocol's rules on images: works out every digest itself."""

    keeps: bool = True
    forgets: int = 0  # so many sessions to come are told that what they know is gone
    kept: set[bytes] = field(default_factory=set)
    openings: list[Open] = field(default_factory=list)
    tenants: list[str] = field(default_factory=list)  # of each opening, as its metadata says

    async def Describe(self, request: Any, context: Any) -> Any:
        return description_to_wire(replace(DESCRIPTION, context=8192))

    async def Session(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        self.tenants.append(dict(context.invocation_metadata()).get("cutline-tenant", ""))
        messages = (agent_from_wire(one) async for one in request_iterator)
        opening = await anext(messages)
        assert isinstance(opening, Open)
        self.openings.append(opening)
        if opening.known and (self.forgets or not self.kept.issuperset(opening.digests[: opening.known])):
            self.forgets -= 1
            yield worker_to_wire(WorkerForgot("gone"))
            await context.abort(grpc.StatusCode.ABORTED, "gone")
        come = await self._received(opening, messages)
        assert tuple(come) == opening.digests[opening.known :]
        if self.keeps:
            self.kept.update(come)
        yield worker_to_wire(Opened("it", kept=self.keeps, reused=7 * opening.known))
        yield worker_to_wire(Confirmed(len(opening.tokens), (STOP,), 0))
        yield worker_to_wire(Finished(Reason.STOP, 1, 0, 0.1))

    async def _received(self, opening: Open, messages: AsyncIterator[Any]) -> list[bytes]:
        """The digests of the images that follow; none of those that have none."""
        parts: list[Any] = []
        if opening.cut == "image":
            assert opening.known + opening.images == len(opening.grids)
            for _ in range(opening.images):
                parts.append([])
                while not parts[-1] or not parts[-1][-1].last:
                    parts[-1].append(await anext(messages))
                    assert isinstance(parts[-1][-1], ImageChunk)
            return [image_digest(b"".join(chunk.data for chunk in file)) for file in parts]
        deep, wires = opening.cut in BUNDLE.manifest.line.deep_cuts, set[Wire]()
        tokens = opening.cut == "decoder.0"
        counts = [(FAMILY.tokens if tokens else FAMILY.patches)(grid) for grid in opening.grids[opening.known :]]
        left = len(opening.tokens) if deep else sum(counts)
        if tokens and not opening.digests:  # merged
            left = opening.tokens.count(BUNDLE.manifest.image_token)
        while sum(map(len, parts)) < left:
            piece = await anext(messages)
            assert isinstance(piece, Boundary)
            parts.append(piece.rows)
            wires.add(piece.wire)
        if not opening.digests or not parts:
            return []
        pieces = np.split(np.concatenate(parts), np.cumsum(counts)[:-1])
        grids, (wire,) = opening.grids[opening.known :], wires
        return [rows_digest(opening.cut, wire, grid, rows) for grid, rows in zip(grids, pieces, strict=True)]


@asynccontextmanager
async def before(worker: KeepingWorker, **options: Any) -> AsyncIterator[Agent]:
    server = grpc.aio.server()
    worker_pb2_grpc.add_WorkerServicer_to_server(worker, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with Agent(DRAFTS, worker=f"127.0.0.1:{port}", threads=1, target=BUNDLE, **options) as agent:
            yield agent
    finally:
        await server.stop(None)


def asking(*images: int, cut: str = "image", **options: Any) -> Request:
    mode = Mode.CLOUD if cut == "image" else Mode.SPLIT
    message = Message("user", (*[ImagePart()] * len(images), TextPart("What?")))
    return Request(messages=(message,), images=tuple(FILES[index] for index in images), mode=mode, cut=cut, **options)


def talk(worker: KeepingWorker, *asked: Request, **options: Any) -> list[Answer]:
    async def run() -> list[Answer]:
        async with before(worker, **options) as agent:
            return [await agent.answer(question) for question in asked]

    return asyncio.run(run())


@pytest.mark.parametrize("wire", list(Wire))
@pytest.mark.parametrize("cut", ["image", "vision.1", "decoder.0"])
def test_the_first_images_that_a_worker_keeps_stay_here(cut: str, wire: Wire) -> None:
    worker = KeepingWorker()
    talks: tuple[tuple[int, ...], ...] = ((0,), (0,), (1, 0), (0, 1), (0, 2, 1), ())
    answers = talk(worker, *(asking(*images, cut=cut, wire=wire) for images in talks))
    assert [one.known for one in worker.openings] == [0, 1, 0, 2, 1, 0]
    assert [answer.reused_images for answer in answers] == [0, 1, 0, 2, 1, 0]
    assert [answer.reused_tokens for answer in answers] == [0, 7, 0, 14, 7, 0]
    assert [len(one.digests) for one in worker.openings] == [1, 1, 2, 2, 3, 0]
    assert [one.images for one in worker.openings] == ([1, 0, 2, 0, 2, 0] if cut == "image" else [0] * 6)
    assert all(len(one.grids) == len(one.digests) for one in worker.openings)


@pytest.mark.threat("caches")
@pytest.mark.parametrize("cut", ["image", "decoder.0"])
def test_what_one_tenant_sent_is_not_known_for_another(cut: str) -> None:
    worker, tenants = KeepingWorker(), ["one", "other", "one", "other", ""]
    answers = talk(worker, *(asking(0, cut=cut, tenant=tenant) for tenant in tenants))
    assert worker.tenants == tenants, "the worker is told for whom, too"
    assert [one.known for one in worker.openings] == [0, 0, 1, 1, 0]
    assert [answer.reused_images for answer in answers] == [0, 0, 1, 1, 0]


def test_a_known_image_is_not_run_either(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles, run = list[int](), VisionSpan.__call__

    def counted(self: VisionSpan, pixels: Any, grids: Any) -> Any:
        tiles.append(len(pixels))
        return run(self, pixels, grids)

    monkeypatch.setattr(VisionSpan, "__call__", counted)
    monkeypatch.setattr("cutline.edge.inference.kv_cache.ROWS_BYTES", 0)  # nothing is kept here
    talk(KeepingWorker(), *[asking(0, 1, cut="decoder.0")] * 3)
    assert tiles == [1, 1]


def test_an_image_is_known_as_it_crossed_and_no_other_way() -> None:
    worker = KeepingWorker()
    ways: list[dict[str, Any]] = [{}, {"cut": "vision.0"}, {"cut": "vision.0", "wire": Wire.INT8}, {"cut": "decoder.0"}]
    talk(worker, *(asking(0, **way) for way in (*ways, *ways)))
    assert [one.known for one in worker.openings] == [0] * 4 + [1] * 4
    assert len(worker.kept) == 4


def test_an_image_with_noise_is_another_and_always_the_same() -> None:
    worker, other = KeepingWorker(), KeepingWorker(keeps=False)
    shares = (0.0, 0.5, 0.25, 0.0, 0.5)
    questions = [asking(0, cut="decoder.0", noise=share) for share in shares]
    answers = talk(worker, *questions)
    assert [answer.exact for answer in answers] == [share == 0.0 for share in shares]
    assert [one.known for one in worker.openings] == [0, 0, 0, 1, 1]
    assert len(worker.kept) == 3
    talk(other, *questions)
    digests = [one.digests for one in other.openings]
    assert (digests[3], digests[4]) == (digests[0], digests[1]), "nothing is drawn twice"
    ours = [one.digests for one in worker.openings]
    assert [one == two for one, two in zip(digests, ours, strict=True)] == [share == 0.0 for share in shares]


@pytest.mark.parametrize("way", [{}, {"cut": "decoder.0", "noise": 0.5}, {"cut": "decoder.2", "noise": 0.5}], ids=str)
def test_of_a_fresh_question_nothing_is_kept_and_its_noise_is_the_same_all_the_same(
    monkeypatch: pytest.MonkeyPatch, way: dict[str, Any]
) -> None:
    runs, decoded, crossed = list[int](), list[int](), list[Any]()
    run, take = VisionSpan.__call__, KeepingWorker._received

    def counted(self: VisionSpan, pixels: Any, grids: Any) -> Any:
        runs.append(len(pixels))
        return run(self, pixels, grids)

    def read(file: bytes) -> Any:
        decoded.append(len(file))
        return decode_image(file)

    async def received(self: KeepingWorker, opening: Open, messages: AsyncIterator[Any]) -> list[bytes]:
        async def noted() -> AsyncIterator[Any]:
            async for one in messages:
                crossed.append(one)
                yield one

        found = await take(self, opening, noted())
        return found if opening.digests else []

    monkeypatch.setattr(VisionSpan, "__call__", counted)
    monkeypatch.setattr(preprocess, "decode_image", read)
    monkeypatch.setattr(KeepingWorker, "_received", received)
    worker = KeepingWorker()
    talk(worker, *[asking(0, **way)] * 2, settings=AgentSettings(fresh=True))
    assert [(one.known, one.digests) for one in worker.openings] == [(0, ()), (0, ())]
    assert len(decoded) == 2
    assert len(runs) == (2 if way else 0)
    if way:
        first, second = np.split(np.concatenate([one.rows for one in crossed]), 2)
        assert np.array_equal(first, second)


@pytest.mark.parametrize("way", [{"cut": "decoder.2"}, {"cut": "decoder.0", "keep_image_tokens": 0.5}])
def test_rows_that_are_no_images_alone_have_no_digest(way: dict[str, Any]) -> None:
    worker = KeepingWorker()
    talk(worker, *[asking(0, 1, **way)] * 2)
    assert [(one.digests, one.known, len(one.grids)) for one in worker.openings] == [((), 0, 2)] * 2


def test_a_worker_that_keeps_nothing_gets_everything() -> None:
    worker = KeepingWorker(keeps=False)
    answers = talk(worker, *[asking(0)] * 3)
    assert [one.known for one in worker.openings] == [0, 0, 0]
    assert [answer.reused_images for answer in answers] == [0, 0, 0]


def test_a_worker_that_forgot_gets_everything_anew_once() -> None:
    worker = KeepingWorker()

    async def run() -> None:
        async with before(worker) as agent:
            await agent.answer(asking(0))
            await agent.answer(asking(1, cut="decoder.0"))
            worker.forgets = 1
            answer = await agent.answer(asking(0))
            assert (answer.reused_images, answer.lost) == (0, ())
            assert [one.known for one in worker.openings[-2:]] == [1, 0]
            assert (await agent.answer(asking(0))).reused_images == 1
            await agent.answer(asking(1, cut="decoder.0"))
            assert worker.openings[-1].known == 0, "all of it was forgotten"

    asyncio.run(run())


def test_what_one_worker_keeps_another_does_not_have() -> None:
    workers = [KeepingWorker() for _ in range(2)]

    async def run() -> None:
        async with before(workers[0]) as one, before(workers[1]) as other:
            other._backends.contact = replace(one._backends.contact, workers=other.workers)
            for _ in range(2):
                for agent in (one, other):
                    await agent.answer(asking(0))

    asyncio.run(run())
    assert [[one.known for one in worker.openings] for worker in workers] == [[0, 1], [0, 1]]
