"""Chains of workers, each with some of the layers: they answer as one does, and fail as one does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from cutline.cli.process.children import worker_process
from cutline.cloud.engine.sessions.session import Session
from cutline.cloud.engine.sessions.session_rows import SessionRows
from cutline.cloud.model.model_runner import Target
from cutline.cloud.serving import server
from cutline.cloud.serving.limits import SERVING_LIMITS, ServingLimits
from cutline.cloud.serving.pipeline import Onward, misfit
from cutline.cloud.serving.server import WorkerOptions, serve
from cutline.cloud.telemetry.observer import NOBODY, Observer
from cutline.cloud.telemetry.session_stats import Account
from cutline.core.sampling import Sampling
from cutline.core.wire import Wire
from cutline.errors import InputError, ModelMismatch, WorkerBusy, WorkerFailed, WorkerUnavailable
from cutline.models.bundle import Bundle
from cutline.protos.client import WorkerClient
from cutline.protos.messages import Cancel, Description, Open, Opened
from cutline.protos.request_ids import TRACE_KEY

Case = tuple[Open, bytes, tuple[int, ...]]
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
SECONDS = 30  # that any one exchange may take
SLOTS = 4

SAMPLING = Sampling(temperature=8.0, top_k=20, top_p=0.9, seed=7, min_p=0.001, frequency_penalty=0.5)


@contextlib.asynccontextmanager
async def chain(
    bundle: Bundle,
    *cuts: str,
    slots: Sequence[int] = (),
    observer: Observer = NOBODY,
    limits: ServingLimits = SERVING_LIMITS,
    **last: Any,
) -> AsyncIterator[list[WorkerClient]]:
    """Clients of workers that divide the layers at `cuts`, the first of them first; `last` is for the last one."""
    places = ["image", *cuts, "end"]
    async with contextlib.AsyncExitStack() as stack:
        address, clients = None, list[WorkerClient]()
        for index in reversed(range(len(places) - 1)):
            more = last if address is None else {}
            address = await stack.enter_async_context(
                serve(
                    bundle,
                    WorkerOptions(
                        slots=slots[index] if slots else SLOTS,
                        context=256,
                        layers=(places[index], places[index + 1]),
                        next_worker=address,
                        limits=limits,
                        **more,
                    ),
                    observer=observer,
                )
            )
            clients.insert(0, await stack.enter_async_context(WorkerClient(address)))
        yield clients


def on_chain(
    bundle: Bundle, cuts: Sequence[str], run: Callable[[list[WorkerClient]], Awaitable[None]], **more: Any
) -> None:
    async def main() -> None:
        async with asyncio.timeout(2 * SECONDS), chain(bundle, *cuts, **more) as clients:
            await run(clients)

    asyncio.run(main())


async def free(clients: Sequence[WorkerClient]) -> None:
    async with asyncio.timeout(SECONDS):
        for client in clients:
            while (await client.describe()).sessions > 0:
                pass


def wrong(answer: Sequence[int]) -> tuple[int, ...]:
    return tuple(token if at % 4 != 2 else 5 for at, token in enumerate(answer))


CHAINS = [
    ("image", ("decoder.1", "decoder.3")),
    ("vision.2", ("decoder.2", "head")),
    ("decoder.1", ("decoder.2", "decoder.3")),
    ("image", ("vision.1", "connector", "decoder.0")),
    *(
        pytest.param(*one, marks=pytest.mark.proof)
        for one in (
            ("decoder.2", ("decoder.3", "head")),
            ("image", ("vision.2", "decoder.2")),
            ("connector", ("decoder.0", "decoder.1", "head")),
        )
    ),
]


@pytest.mark.parametrize(("cut", "cuts"), CHAINS)
def test_a_chain_answers_as_one_worker_does(
    bundle: Bundle, asking: Any, cases: list[Case], case: Case, cut: str, cuts: tuple[str, ...]
) -> None:
    """Several sessions at once: without drafts, with right and wrong ones, with none to little and much effort."""

    async def run(clients: list[WorkerClient]) -> None:
        some = [*cases[:3], case]
        asked = [
            asking(some[0], cut),
            asking(some[1], cut, believed=some[1][2], ahead=4, effort=0.5),
            asking(some[2], cut, believed=wrong(some[2][2]), ahead=5, effort=0.0),
            asking(some[3], cut, believed=some[3][2], ahead=99, effort=0.0, draft=some[3][2]),
        ]
        finished = await asyncio.gather(*(one.ask(clients[0]) for one in asked))
        for one, (_, _, answer) in zip(asked, some, strict=True):
            assert tuple(one.tokens) == answer
            assert isinstance(one.events[0], Opened)
        assert finished[3].passes < len(asked[3].tokens) / 2  # its draft was right as a whole
        assert all(one.cloud_seconds > 0 for one in finished)
        await free(clients)

    on_chain(bundle, cuts, run)


def test_cloud_seconds_are_those_of_all_workers(
    bundle: Bundle, asking: Any, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every pass of every worker says how long it took; the answer's seconds are those, and those of its images."""
    sessions: dict[int, Session] = {}
    spent: list[float] = []
    ran = Session.ran

    def counted(session: Session, rows: SessionRows, seconds: float, now: float) -> None:
        spent.append(seconds)
        sessions[id(session)] = session
        ran(session, rows, seconds, now)

    monkeypatch.setattr(Session, "ran", counted)

    async def run(clients: list[WorkerClient]) -> None:
        finished = await asking(case, "image").ask(clients[0])
        assert finished is not None
        assert finished.passes == len(case[2])  # of the whole model
        assert len(sessions) == 3
        assert finished.cloud_seconds == pytest.approx(sum(session.seconds for session in sessions.values()))
        assert finished.cloud_seconds > sum(spent)

    on_chain(bundle, ("decoder.1", "decoder.3"), run)


def test_every_worker_of_a_chain_logs_a_request_by_its_name(bundle: Bundle, asking: Any, case: Case) -> None:
    ended = list[Account]()

    class Ends(Observer):
        def ended(self, account: Account) -> None:
            ended.append(account)

    async def run(clients: list[WorkerClient]) -> None:
        one = asking(case, "image", request_id="req-7", max_tokens=3)
        session = clients[0].session(one.opening, one.upload(), timeout=SECONDS, metadata=((TRACE_KEY, TRACE),))
        async with session:
            await one.follow(session)
        await free(clients)

    on_chain(bundle, ("decoder.1", "decoder.3"), run, observer=Ends())
    assert [(one.request_id, one.trace) for one in ended] == [("req-7", TRACE)] * 3


def test_sampled_answers_are_those_of_one_worker(bundle: Bundle, asking: Any, case: Case) -> None:
    """The noise is keyed by seed and position, which travel the chain."""
    answers = []

    async def run(clients: list[WorkerClient]) -> None:
        one = asking(case, "image", sampling=SAMPLING, max_tokens=12)
        await one.ask(clients[0])
        answers.append(one.tokens)

    for cuts in ((), ("decoder.1", "decoder.3"), ("vision.0", "decoder.0")):
        on_chain(bundle, cuts, run)
    assert answers[0] == answers[1] == answers[2] != list(case[2])[:12]


def test_an_answer_ends_at_its_limit_and_at_a_token_to_stop_at(bundle: Bundle, asking: Any, case: Case) -> None:
    async def run(clients: list[WorkerClient]) -> None:
        for believed in ((), case[2]):
            one = asking(case, "image", believed=believed, ahead=99, draft=believed, max_tokens=7)
            await one.ask(clients[0])
            assert tuple(one.tokens) == case[2][:7]
            ends = Sampling(stop_token_ids=(case[2][4],))
            one = asking(case, "image", believed=believed, ahead=99, draft=believed, sampling=ends)
            await one.ask(clients[0])
            assert tuple(one.tokens) == case[2][: case[2].index(case[2][4]) + 1]

    on_chain(bundle, ("decoder.2",), run)


@pytest.mark.parametrize("cut", ["image", "decoder.1"])
def test_an_agent_that_leaves_frees_the_whole_chain(bundle: Bundle, asking: Any, case: Case, cut: str) -> None:
    async def run(clients: list[WorkerClient]) -> None:
        for _ in range(3):
            await asking(case, cut, believed=case[2], ahead=2).ask(clients[0], stop=3)
            await free(clients)
        one = asking(case, cut)
        await one.ask(clients[0])
        assert tuple(one.tokens) == case[2]

    on_chain(bundle, ("decoder.2", "decoder.3"), run, slots=(1, 1, 1))


def test_a_slow_link_to_the_next_worker_holds_up_no_cancel(
    bundle: Bundle, asking: Any, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stuck(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Onward, "forward", stuck)

    async def run(clients: list[WorkerClient]) -> None:
        one = asking(case, "image")
        async with clients[0].session(one.opening, one.upload(), timeout=SECONDS) as session:
            assert isinstance(await anext(session.events()), Opened)
            await session._send(Cancel())
            with pytest.raises(WorkerUnavailable, match="ended the session"):
                await anext(session.events())
        await free(clients)

    on_chain(bundle, ("decoder.2",), run, limits=ServingLimits(linger_seconds=0.1))


def test_a_deadline_travels_the_chain(bundle: Bundle, asking: Any, case: Case) -> None:
    async def run(clients: list[WorkerClient]) -> None:
        one = asking(case, "image", effort=0.0)  # waits for drafts after the first token
        with pytest.raises(WorkerUnavailable, match="in time"):
            async with clients[0].session(one.opening, one.upload(), timeout=0.5) as session:
                await one.follow(session)
        await free(clients)

    on_chain(bundle, ("decoder.2",), run)


POISON = 400  # a token that breaks the pass of the last worker


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Target.run

    def poisonous(target: Target, batch: Any, images: Any, **options: Any) -> Any:
        if target.chooses and any(POISON in rows.tokens for rows in batch):
            raise RuntimeError("a bad pass")
        return run(target, batch, images, **options)

    monkeypatch.setattr(Target, "run", poisonous)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("cut", "cuts"), [("image", ("decoder.1", "decoder.3")), ("image", ("vision.1", "decoder.2"))])
def test_an_error_of_the_last_worker_reaches_its_agent_alone(
    bundle: Bundle, asking: Any, cases: list[Case], cut: str, cuts: tuple[str, ...]
) -> None:
    async def fails(client: WorkerClient) -> None:
        one = asking(cases[0], cut, draft=(POISON,))
        with pytest.raises(WorkerFailed, match="log says more") as failure:
            await one.ask(client)
        assert "bad pass" not in str(failure.value)
        assert "127.0.0.1" not in str(failure.value)

    async def run(clients: list[WorkerClient]) -> None:
        beside = [asking(case, cut, believed=case[2], ahead=2, effort=0.0) for case in cases[1:3]]
        async with asyncio.TaskGroup() as group:
            for one in beside:
                group.create_task(one.ask(clients[0]))
            group.create_task(fails(clients[0]))
        assert [tuple(one.tokens) for one in beside] == [case[2] for case in cases[1:3]]
        await free(clients)

    on_chain(bundle, cuts, run)


def test_a_last_worker_that_refuses_the_rows_is_heard_in_its_own_words(bundle: Bundle, asking: Any, case: Case) -> None:
    async def run(clients: list[WorkerClient]) -> None:
        with pytest.raises(InputError, match="no boundary rows as fp32; send int8"):
            await asking(case, "image").ask(clients[0])

    on_chain(bundle, ("decoder.1", "decoder.3"), run, wires=(Wire.INT8,))


@pytest.mark.parametrize("slots", [(2, 1), (3, 2, 1)])
def test_a_chain_is_busy_when_any_of_it_is(bundle: Bundle, asking: Any, case: Case, slots: tuple[int, ...]) -> None:
    async def run(clients: list[WorkerClient]) -> None:
        holding = asking(case, "image", effort=0.0)
        async with clients[0].session(holding.opening, holding.upload(), timeout=SECONDS) as session:
            await holding.follow(session, stop=1)
            with pytest.raises(WorkerBusy, match="chain"):
                await asking(case, "image").ask(clients[0])
        await free(clients)
        again = asking(case, "image")
        await again.ask(clients[0])
        assert tuple(again.tokens) == case[2]

    on_chain(bundle, ("decoder.1", "decoder.3")[: len(slots) - 1], run, slots=slots)


@pytest.mark.threat("words")
def test_a_chain_that_lost_its_end_says_so_and_names_no_address(bundle: Bundle, asking: Any, case: Case) -> None:
    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            end = await stack.enter_async_context(contextlib.AsyncExitStack())
            common = WorkerOptions(slots=2, context=256)
            last = await end.enter_async_context(serve(bundle, replace(common, layers=("decoder.2", "end"))))
            first = await stack.enter_async_context(
                serve(bundle, replace(common, layers=("image", "decoder.2"), next_worker=last))
            )
            client = await stack.enter_async_context(WorkerClient(first))
            running = asking(case, "image", effort=0.0)
            async with client.session(running.opening, running.upload(), timeout=SECONDS) as session:
                await running.follow(session, stop=1)
                await end.aclose()
                with pytest.raises(WorkerUnavailable, match="further along") as failure:
                    await running.follow(session)
            assert "127.0.0.1" not in str(failure.value)
            with pytest.raises(WorkerUnavailable, match="further along"):
                await asking(case, "image").ask(client)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("first", "last"),
    [
        (("image", "decoder.1"), ("decoder.2", "end")),  # a gap
        (("image", "decoder.2"), ("image", "decoder.2")),  # nothing after
        (("image", "vision.1"), ("decoder.0", "end")),
    ],
)
def test_spans_that_do_not_meet_are_refused_at_the_start(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, first: tuple[str, str], last: tuple[str, str]
) -> None:
    async def main() -> None:
        common = WorkerOptions(slots=1, context=64)
        async with contextlib.AsyncExitStack() as stack:
            address = None
            if last[1] != "end":
                address = await stack.enter_async_context(serve(bundle, replace(common, layers=(last[1], "end"))))
            there = await stack.enter_async_context(serve(bundle, replace(common, layers=last, next_worker=address)))
            monkeypatch.setattr(server, "Target", None)  # nothing is loaded in vain
            with pytest.raises(InputError, match=rf"{there}, has the layers {last[0]}:{last[1]}, .* end at {first[1]}"):
                await stack.enter_async_context(serve(bundle, replace(common, layers=first, next_worker=there)))

    asyncio.run(main())


def test_nobody_to_go_on_is_refused_at_the_start(bundle: Bundle) -> None:
    async def main() -> None:
        async with serve(
            bundle, WorkerOptions(slots=1, context=64, layers=("image", "head"), next_worker="127.0.0.1:1")
        ):
            pass

    with pytest.raises(WorkerUnavailable, match=r"127\.0\.0\.1:1"):
        asyncio.run(main())


def described(bundle: Bundle, **changes: Any) -> Description:
    found = Description(
        model=bundle.manifest.identity,
        name="there",
        version="1",
        vision_layers=4,
        decoder_layers=4,
        context=9,
        sessions=0,
        max_sessions=1,
        start="decoder.1",
        end="decoder.3",
    )
    return replace(found, **changes)


def test_what_fits_and_what_does_not(bundle: Bundle) -> None:
    found = described(bundle)
    fits = [cut for cut in bundle.manifest.line.layers if misfit(found, bundle.manifest, cut) is None]
    assert fits == ["decoder.1", "decoder.2"]
    assert isinstance(misfit(described(bundle, model="0" * 64), bundle.manifest, "decoder.1"), ModelMismatch)
    for start, end in (("", ""), ("decoder.1", "decoder.9"), ("x", "end")):
        assert isinstance(misfit(described(bundle, start=start, end=end), bundle.manifest, "decoder.1"), InputError)


def test_a_worker_says_which_layers_it_has(bundle: Bundle) -> None:
    async def run(clients: list[WorkerClient]) -> None:
        found = [await client.describe() for client in clients]
        assert [(one.start, one.end) for one in found] == [("image", "decoder.1"), ("decoder.1", "end")]

    on_chain(bundle, ("decoder.1",), run)


def test_a_session_begins_at_the_layers_of_its_worker_alone(bundle: Bundle, asking: Any, case: Case) -> None:
    async def run(clients: list[WorkerClient]) -> None:
        for client, cuts in ((clients[0], ("decoder.1", "head")), (clients[1], ("image", "decoder.0"))):
            for cut in cuts:
                with pytest.raises(InputError, match="cannot begin at"):
                    await asking(case, cut).ask(client)

    on_chain(bundle, ("decoder.1",), run)


def test_worker_processes_in_a_chain(bundle: Bundle, asking: Any, case: Case) -> None:
    with (
        worker_process(bundle.path, "--layers", "decoder.1:") as last,
        worker_process(bundle.path, "--layers", ":decoder.1", "--next", last) as first,
    ):

        async def run() -> None:
            async with WorkerClient(first) as client:
                one = asking(case, "image", believed=wrong(case[2]), ahead=4, effort=0.5)
                await one.ask(client)
                assert tuple(one.tokens) == case[2]

        asyncio.run(run())
