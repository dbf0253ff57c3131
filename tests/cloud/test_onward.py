"""A worker's own connection to the next one: what it calls its agents there, and what they hear of its troubles."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cutline.cli.access.certificates import DEVICE, SERVER, Authority, pair_of
from cutline.cloud.access.auth import Callers
from cutline.cloud.engine.cost_model import PACING, Pacing
from cutline.cloud.engine.sessions.session_request import SessionRequest
from cutline.cloud.serving.limits import ServingLimits
from cutline.cloud.serving.pipeline import NextWorker, Onward, Word, onward_name
from cutline.cloud.serving.server import ANYBODY, Access, WorkerOptions, serve
from cutline.core.sampling import Sampling
from cutline.core.wire import Wire
from cutline.errors import WorkerBusy, WorkerFailed, WorkerUnavailable
from cutline.models.bundle import Bundle
from cutline.protos.channel.credentials import TENANT_KEY, AgentKeys, ServerKeys
from cutline.protos.channel.token_file import is_tenant, token_entry
from cutline.protos.client import WorkerClient, WorkerSession
from cutline.protos.messages import Draft, Open

Case = tuple[Open, bytes, tuple[int, ...]]
SECONDS = 120
ASKED = SessionRequest(tokens=(1,), prompt_length=1, max_tokens=1, sampling=Sampling(), effort=1.0)


@contextlib.asynccontextmanager
async def first_and_last(
    bundle: Bundle, *, slots: int = 2, first: Access = ANYBODY, pacing: Pacing = PACING
) -> AsyncIterator[tuple[str, str]]:
    """The addresses of two workers, of which the first goes on at the second."""
    common = WorkerOptions(slots=slots, context=256, pacing=pacing)
    async with (
        asyncio.timeout(2 * SECONDS),
        serve(bundle, replace(common, layers=("decoder.2", "end"))) as there,
        serve(bundle, replace(common, layers=("image", "decoder.2"), next_worker=there), access=first) as here,
    ):
        yield here, there


@pytest.mark.parametrize("depth", [1, 2])
def test_an_agents_name_passes_along_a_chain_without_keys(bundle: Bundle, asking: Any, case: Case, depth: int) -> None:
    """As long as a name may be: each worker's own name for its caller would be longer."""

    async def main() -> None:
        async with first_and_last(bundle) as (here, _), WorkerClient(here) as client:
            one = asking(case, "image")
            name = "/".join(["warehouse" * 7] * (1 if depth == 1 else 4))[:256]
            metadata = ((TENANT_KEY, name),)
            async with client.session(one.opening, one.upload(), timeout=SECONDS, metadata=metadata) as session:
                await one.follow(session)
            assert tuple(one.tokens) == case[2]

    asyncio.run(main())


def test_names_stay_apart_and_in_bounds_however_many_workers_pass_them_on(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(token_entry("one" * 20, "a" * 30) + token_entry("two" * 20, "b" * 30))
    callers = Callers.of(None, tokens)
    names = [("a" * 30, "x" * 256), ("a" * 30, "x" * 255), ("b" * 30, "x" * 256), ("a" * 30, ""), ("a" * 30, "x")]
    for _ in range(6):
        found = [
            callers.find((("authorization", f"Bearer {token}"), *(((TENANT_KEY, within),) if within else ())), {}).name
            for token, within in names
        ]
        passed = [onward_name(name) for name in found]
        assert len(set(passed)) == len(names)
        assert all(name == short for name, short in zip(found, passed, strict=True) if len(name) <= 256)
        assert not any(is_tenant(short) for name, short in zip(found, passed, strict=True) if name != short)
        names = [("a" * 30, name) for name in passed]


class _Wire:
    """The call of a session whose writes cost nothing and go nowhere."""

    async def write(self, message: object) -> None:
        await asyncio.sleep(0)

    def cancel(self) -> None:
        pass


def test_a_death_is_noticed_as_soon_while_tokens_flow(bundle: Bundle) -> None:
    """Much was sent and is long there: only the heartbeats can say so."""
    limits = ServingLimits(silence_seconds=0.4)
    manifest, dead, words = bundle.manifest, asyncio.Event(), list[Word]()

    async def beat() -> bool:
        if dead.is_set():
            await asyncio.Event().wait()
        return True

    async def main() -> None:
        async with NextWorker("127.0.0.1:1", manifest, cut="decoder.2", limits=limits) as there:
            onward = Onward(there, wire=Wire.FLOAT32, remaining=lambda: None)
            onward.go(ASKED, words.append)
            session = WorkerSession("127.0.0.1:1", _Wire(), beat=beat)
            watching = asyncio.create_task(onward._watch(session, there.client.line))
            for _ in range(40):
                await session.offer(Draft(0, tuple(range(20_000))))
                session._hear()
                await asyncio.sleep(0.02)
            dead.set()
            assert session.given > 1_000_000
            began = time.monotonic()
            await asyncio.wait_for(watching, SECONDS)
            assert time.monotonic() - began < SECONDS / 2, "what was sent would have been waited for twice as long"
        assert [type(word) for word in words] == [WorkerUnavailable]

    asyncio.run(main())


@pytest.fixture
def keys(tmp_path: Path) -> tuple[ServerKeys, AgentKeys]:
    authority = Authority.make(tmp_path / "keys")
    server, worker = authority.sign("server", SERVER, hosts=["127.0.0.1"]), authority.sign("worker", DEVICE)
    authority.write()
    ca = pair_of(authority.folder, "ca").certificate
    return (
        ServerKeys(certificate=server.certificate, key=server.key, client_ca=ca),
        AgentKeys(ca=ca, certificate=worker.certificate, key=worker.key),
    )


def test_files_that_do_not_read_leave_a_connection_as_it_is(bundle: Bundle, keys: tuple[ServerKeys, AgentKeys]) -> None:
    """Also where it would be left: one that stands may be heard of again, one that cannot be made never."""
    server, agent = keys
    assert agent.key is not None
    key, whole = agent.key, agent.key.read_bytes()

    async def main() -> None:
        options = WorkerOptions(slots=1, context=64)
        async with (
            serve(bundle, options, access=Access(keys=server)) as address,
            NextWorker(address, bundle.manifest, cut="decoder.2", keys=agent) as there,
        ):
            await there.check()
            before = there.client.line
            key.write_bytes(whole[:50])
            there.client.leave(before)
            await there.check()
            key.write_bytes(whole)
            there.client.leave(there.client.line)
            assert there.client.line is not before
            await there.check()

    asyncio.run(main())


def test_a_session_hears_of_a_death_though_keys_do_not_read(bundle: Bundle, keys: tuple[ServerKeys, AgentKeys]) -> None:
    _, agent = keys
    assert agent.key is not None
    key, words = agent.key, list[Word]()

    async def never() -> bool:
        await asyncio.Event().wait()
        return True

    async def main() -> None:
        async with NextWorker("127.0.0.1:1", bundle.manifest, cut="decoder.2", keys=agent) as there:
            onward = Onward(there, wire=Wire.FLOAT32, remaining=lambda: None)
            onward.go(ASKED, words.append)
            session = WorkerSession("127.0.0.1:1", _Wire(), beat=never)
            line = there.client.line
            key.unlink()
            await asyncio.wait_for(onward._watch(session, line), SECONDS)
        assert [type(word) for word in words] == [WorkerUnavailable]

    asyncio.run(main())


@pytest.mark.threat("words")
def test_a_token_file_of_the_workers_own_is_no_fault_of_the_agents(
    bundle: Bundle, asking: Any, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither before a session goes on nor as it does."""
    file = tmp_path / "token"
    file.write_text("of-the-first-worker")
    file.chmod(0o600)
    checked = NextWorker.check

    async def then_lost(there: NextWorker) -> None:
        await checked(there)
        file.unlink()

    async def main() -> None:
        first = Access(onward=AgentKeys(token_file=file))
        async with first_and_last(bundle, first=first) as (here, _), WorkerClient(here) as client:
            one = asking(case, "image")
            await one.ask(client)
            assert tuple(one.tokens) == case[2]
            monkeypatch.setattr(NextWorker, "check", then_lost)
            for _ in range(2):
                with pytest.raises(WorkerFailed, match="log says more") as failure:
                    await asking(case, "image").ask(client)
                assert str(tmp_path) not in str(failure.value)

    asyncio.run(main())


@pytest.mark.parametrize("safe", [0.0, 600.0])
def test_a_next_worker_that_would_evict_takes_a_session(bundle: Bundle, asking: Any, case: Case, safe: float) -> None:
    """Its own engine decides, as where an agent asks it itself."""

    async def main() -> None:
        async with (
            first_and_last(bundle, slots=1, pacing=Pacing(safe_seconds=safe)) as (here, there),
            WorkerClient(here) as client,
            WorkerClient(there) as beside,
        ):
            idle = asking(case, "decoder.2", effort=0.0)
            async with beside.session(idle.opening, idle.upload(), timeout=SECONDS) as session:
                await idle.follow(session, stop=1)
                one = asking(case, "image")
                with contextlib.nullcontext() if safe == 0.0 else pytest.raises(WorkerBusy):
                    await one.ask(client)
                    assert tuple(one.tokens) == case[2]

    asyncio.run(main())
