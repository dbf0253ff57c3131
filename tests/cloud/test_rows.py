"""Sessions that were cut inside the decoder, on a real worker: rows of every kind, and none that harms another."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cutline.cloud.engine.cost_model import Pacing
from cutline.cloud.engine.engine import Engine
from cutline.cloud.serving import servicer
from cutline.cloud.serving.server import WorkerOptions, serve
from cutline.core.wire import Wire
from cutline.demo.bundles import TARGET
from cutline.errors import InputError
from cutline.models.bundle import Bundle
from cutline.protos.client import WorkerClient
from cutline.protos.codec import agent_to_wire, worker_from_wire
from cutline.protos.messages import Boundary, Confirmed, Draft, Finished, Open, Opened, boundary_chunks, image_chunks
from cutline.protos.v1 import worker_pb2 as pb

Case = tuple[Open, bytes, tuple[int, ...]]
LINE = Bundle.open(TARGET).manifest.line
DEEP = LINE.deep_cuts
SECONDS = 30  # that any one session may take


def on_worker(bundle: Bundle, run: Callable[[WorkerClient], Awaitable[None]], *, slots: int = 8, **more: Any) -> None:
    async def main() -> None:
        async with (
            asyncio.timeout(2 * SECONDS),
            serve(bundle, WorkerOptions(slots=slots, context=256, **more)) as address,
            WorkerClient(address) as client,
        ):
            await run(client)

    asyncio.run(main())


@pytest.mark.parametrize("effort", [0.0, 1.0])
def test_sessions_of_every_cut_at_once_give_generates_answers(
    bundle: Bundle, asking: Any, cases: list[Case], effort: float
) -> None:
    """Right drafts, wrong ones and none; at a deep cut effort has nothing to say."""

    async def run(client: WorkerClient) -> None:
        asked = []
        for number, cut in enumerate([*DEEP, *LINE.image_cuts, *DEEP]):
            case = cases[number % len(cases)]
            believed = case[2] if number % 2 else tuple(5 if at % 4 == 2 else t for at, t in enumerate(case[2]))
            asked.append((asking(case, cut, believed=believed, ahead=1 + number % 5, effort=effort), case))
        await asyncio.gather(*(one.ask(client) for one, _ in asked))
        for one, case in asked:
            assert tuple(one.tokens) == case[2]

    on_worker(bundle, run, slots=16)


@pytest.mark.parametrize("cut", DEEP)
def test_a_whole_draft_is_verified_in_one_round_trip(bundle: Bundle, asking: Any, case: Case, cut: str) -> None:

    async def run(client: WorkerClient) -> None:
        await asking(case, cut, draft=case[2]).ask(client)  # a worker's first pass is short: it knows no costs yet
        one = asking(case, cut, draft=case[2])
        finished = await one.ask(client)
        assert (finished.passes, finished.verified) == (1, len(case[2]))
        assert tuple(one.tokens) == case[2]

    on_worker(bundle, run, pacing=Pacing(pass_seconds=60.0))  # no pass of a busy machine has the next ones be short


@pytest.mark.parametrize("wire", [Wire.FLOAT32, Wire.FLOAT16, Wire.BFLOAT16, Wire.INT8])
def test_rows_may_travel_in_every_format(bundle: Bundle, unsplit: Any, asking: Any, case: Case, wire: Wire) -> None:
    """One step from a whole answer: what the worker chooses is what transformers chooses from the rows it decoded."""
    opening, _, answer = case

    async def run(client: WorkerClient) -> None:
        one = asking(case, "decoder.2", tokens=opening.tokens + answer[:3])
        rows = unsplit.rows(one.opening.tokens, one.pixels, "decoder.2")
        async with client.session(one.opening, boundary_chunks(rows, wire), timeout=SECONDS) as session:
            await one.follow(session, stop=1)
        assert one.tokens[0] == answer[3]

    on_worker(bundle, run)


class Talk:
    """One session, message by message, that says what no agent would."""

    def __init__(self, client: WorkerClient) -> None:
        self.call = client._connection.line.stub.Session(timeout=SECONDS)

    async def say(self, *messages: Any) -> None:
        for message in messages:
            await self.call.write(message if isinstance(message, pb.AgentMessage) else agent_to_wire(message))

    async def hear(self) -> Any:
        return worker_from_wire(await self.call.read())

    async def last(self) -> Any:
        """The last thing it says: an error or that it has finished."""
        while isinstance(said := await self.hear(), Opened | Confirmed):
            pass
        await self.call.done_writing()
        return said


def rows(count: int, width: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.zeros((count, width), np.float32)


def wrong_openings(one: Any, width: int) -> dict[str, tuple[list[Any], str]]:
    opening, count = one.opening, len(one.opening.tokens)
    drafting = replace(opening, draft=(5, 6))

    def sent(first: Any, *parts: np.ndarray[Any, Any]) -> list[Any]:
        return [first, *(Boundary(part, last=part is parts[-1]) for part in parts)]

    return {
        "an image": ([opening, *image_chunks(one.image)], "rows were to come, 0 came"),
        "a row too few": (sent(opening, rows(count - 1, width)), f"{count} boundary rows"),
        "a row too many": (sent(opening, rows(count, width), rows(1, width)), f"{count} boundary rows"),
        "no rows of the draft": (sent(drafting, rows(count, width)), f"{count + 2} boundary rows"),
        "a draft instead of rows": ([opening, Draft(0, (1,), rows(1, width))], "rows were to come, 0 came"),
        "rows of the image's tokens alone": (sent(opening, rows(16, width)), f"{count} boundary rows"),
        "narrow": (sent(opening, rows(count, width - 1)), "wide"),
        "width of nothing": (sent(opening, rows(count, 1)), "wide"),
        "a huge draft": ([replace(opening, draft=(5,) * (1 << 19))], "over 128 MiB"),
        "too many grids": ([replace(opening, grids=((0, 0),) * 33)], "too many"),
        "a grid of none": ([replace(opening, grids=((7, 1),))], "grid"),
        "a huge grid": ([replace(opening, grids=((2**32 - 1, 2**32 - 1),))], "grid"),
    }


def wrong_drafts(one: Any, width: int) -> dict[str, tuple[list[Any], str]]:
    at = len(one.opening.tokens)
    nan = pb.Tensor(type="FLOAT32", shape=[1, width], data=np.full((1, width), np.nan, np.float32).tobytes())
    return {
        "no rows": ([Draft(at, (5,))], "needs a boundary row a token"),
        "wide": ([Draft(at, (5,), rows(1, width + 1))], "wide"),
        "too few": ([Draft(at, (5, 6), rows(1, width))], "2 tokens came with 1"),
        "too many": ([Draft(at, (5,), rows(2, width))], "1 tokens came with 2"),
        "not finite": ([pb.AgentMessage(draft=pb.Draft(position=at, tokens=[5], rows=nan))], "not finite"),
        "three dimensions": ([Draft(at, (5, 6), np.zeros((2, 1, width), np.float32))], "2 dimensions"),
        "outside": ([Draft(at, (1 << 20,), rows(1, width))], "vocabulary"),
        "the boundary again": ([Boundary(rows(at, width), last=True)], "takes drafts"),
    }


@pytest.mark.parametrize("cut", ["decoder.2", "head"])
def test_wrong_rows_end_their_session_alone(bundle: Bundle, asking: Any, case: Case, cut: str) -> None:
    """Each on one worker, beside a session that is open all the while, and goes on after it."""
    width = bundle.manifest.decoder.width

    async def run(client: WorkerClient) -> None:
        beside = asking(case, cut, believed=case[2], ahead=3)
        async with client.session(beside.opening, beside.upload(), timeout=SECONDS) as session:
            await beside.follow(session, stop=1)
            one = asking(case, cut)
            for name, (messages, words) in wrong_openings(one, width).items():
                talk = Talk(client)
                await talk.say(*messages)
                await talk.call.done_writing()
                said = await talk.hear()
                assert isinstance(said, InputError), name
                assert words in str(said), name
            for name, (messages, words) in wrong_drafts(one, width).items():
                talk = Talk(client)
                await talk.say(one.opening, *one.upload())
                assert isinstance(await talk.hear(), Opened)
                assert await talk.hear() == Confirmed(len(one.opening.tokens), case[2][:1], 0)
                await talk.say(*messages)
                said = await talk.last()
                assert isinstance(said, InputError), name
                assert words in str(said), name
            for draft in beside.drafts():
                await session.offer(draft)
            await beside.follow(session)
        assert tuple(beside.tokens) == case[2]

    on_worker(bundle, run)


def test_rows_where_tokens_travel_by_themselves(bundle: Bundle, asking: Any, case: Case) -> None:
    async def run(client: WorkerClient) -> None:
        one = asking(case, "decoder.0", effort=0.0)
        talk = Talk(client)
        await talk.say(one.opening, *one.upload(), Draft(40, (5,), rows(1, bundle.manifest.decoder.width)))
        said = await talk.last()
        assert isinstance(said, InputError)
        assert "no boundary rows at decoder.0" in str(said)

    on_worker(bundle, run)


def test_drafts_that_are_late_early_or_repeated_change_nothing(
    bundle: Bundle, unsplit: Any, asking: Any, case: Case
) -> None:
    opening, _, answer = case

    async def run(client: WorkerClient) -> None:
        one = asking(case, "decoder.1")

        def drafts(start: int, tokens: Iterable[int]) -> Draft:
            """The answer from its token `start` on, rows computed after all that stands before."""
            new = tuple(tokens)
            whole = (*opening.tokens, *answer[:start], *new)
            after = len(opening.tokens) + start
            return Draft(after, new, unsplit.rows(whole, one.pixels, "decoder.1")[after:])

        async with client.session(one.opening, one.upload(), timeout=SECONDS) as session:
            await one.follow(session, stop=1)
            right = drafts(0, answer[:4])
            early, wrong = drafts(9, answer[9:11]), drafts(1, [5, *answer[2:4]])
            after_wrong = Draft(
                len(opening.tokens) + 4, (5,), rows(1, bundle.manifest.decoder.width)
            )  # of a wrong past
            for draft in (early, wrong, after_wrong, right, right, early, after_wrong):
                await session.offer(draft)
            while len(one.tokens) < 5:
                await one.follow(session, stop=len(one.tokens) + 1)
                if len(one.tokens) < 5:
                    await session.offer(right)
            assert tuple(one.tokens) == answer[: len(one.tokens)]
            await session.offer(drafts(4, answer[4:]))
            one.believed = answer
            await one.follow(session)
        assert tuple(one.tokens) == answer

    on_worker(bundle, run)


def test_a_worker_takes_the_formats_it_was_told_to(bundle: Bundle, asking: Any, case: Case) -> None:
    async def run(client: WorkerClient) -> None:
        one = asking(case, "decoder.2")
        chunks = [replace(chunk, wire=Wire.INT8) for chunk in one.upload()]
        with pytest.raises(InputError, match="no boundary rows as int8; send fp32, fp16"):
            async with client.session(one.opening, chunks, timeout=SECONDS) as session:
                await one.follow(session)
        async with client.session(one.opening, one.upload(), timeout=SECONDS) as session:
            await one.follow(session, stop=1)
            await session.offer(replace(one.drafts()[0], wire=Wire.BFLOAT16))
            with pytest.raises(InputError, match="no boundary rows as bf16; send fp32, fp16"):
                await one.follow(session)
        again = asking(case, "decoder.2")
        assert isinstance(await again.ask(client), Finished)
        assert tuple(again.tokens) == case[2]

    on_worker(bundle, run, wires=(Wire.FLOAT32, Wire.FLOAT16))


def test_fewer_image_tokens_than_a_grid_has_may_enter_the_decoder(
    bundle: Bundle, unsplit: Any, asking: Any, case: Case
) -> None:
    """An agent may have merged some; the prompt says how many are left. In the tower all must come."""
    opening = case[0]
    marker = bundle.manifest.image_token
    fewer = tuple(token for at, token in enumerate(opening.tokens) if token != marker or at % 2)
    count = fewer.count(marker)
    assert 0 < count < opening.tokens.count(marker)

    async def run(client: WorkerClient) -> None:
        one = asking(case, "decoder.0", tokens=fewer, prompt_length=len(fewer), max_tokens=4)
        kept = unsplit.boundary(one.pixels, "decoder.0")[:count]
        async with client.session(one.opening, boundary_chunks(kept, Wire.FLOAT32), timeout=SECONDS) as session:
            await one.follow(session)
        assert one.tokens
        tower = asking(case, "vision.1", tokens=fewer, prompt_length=len(fewer))
        with pytest.raises(InputError, match="image tokens, but images of the grids sent have 16"):
            await tower.ask(client)

    on_worker(bundle, run)


def test_an_agent_that_drafts_faster_than_the_engine_takes_is_not_read_on(
    bundle: Bundle, asking: Any, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts are up to 1 MiB: what nobody takes must not pile up."""
    offered: list[Draft] = []
    full = threading.Event()

    def hold(engine: Engine, name: str, draft: Draft, taken: Any) -> None:
        offered.append(draft)
        if len(offered) == servicer.DRAFTS_WAITING:
            full.set()

    monkeypatch.setattr(Engine, "offer", hold)

    async def run(client: WorkerClient) -> None:
        one = asking(case, "decoder.2")
        talk = Talk(client)
        await talk.say(one.opening, *one.upload())
        assert isinstance(await talk.hear(), Opened)
        for _ in range(3 * servicer.DRAFTS_WAITING):
            await talk.say(Draft(len(one.opening.tokens), (5,), rows(1, bundle.manifest.decoder.width)))
        assert await asyncio.to_thread(full.wait, SECONDS)
        await asyncio.sleep(0.1)
        assert len(offered) == servicer.DRAFTS_WAITING
        talk.call.cancel()

    on_worker(bundle, run)


def test_rows_out_of_all_proportion_harm_their_session_alone(bundle: Bundle, asking: Any, cases: list[Case]) -> None:
    """Rows so large that the logits are no numbers any more: the answer is nonsense, of that session alone."""
    largest = np.finfo(np.float32).max

    async def run(client: WorkerClient) -> None:
        beside = [asking(case, "decoder.1", believed=case[2], ahead=3) for case in cases[:3]]
        bad = asking(cases[3], "decoder.1", max_tokens=4)
        huge = np.full((len(bad.opening.tokens), bundle.manifest.decoder.width), largest, np.float32)

        async def nonsense() -> None:
            async with client.session(bad.opening, boundary_chunks(huge, Wire.FLOAT32), timeout=SECONDS) as session:
                await bad.follow(session, stop=1)

        await asyncio.gather(nonsense(), *(one.ask(client) for one in beside))
        assert [tuple(one.tokens) for one in beside] == [case[2] for case in cases[:3]]

    on_worker(bundle, run)
