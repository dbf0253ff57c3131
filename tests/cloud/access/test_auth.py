"""Who may call a worker: every method of every service of a running one, by nobody, by strangers and by tenants."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import hmac
import logging
import os
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

from cutline.cli.access.certificates import DEVICE, SERVER, Authority, pair_of
from cutline.cloud.access import auth
from cutline.cloud.access.auth import CALL_LIMITS, CALLER, Caller, Callers, CallLimits, may_call
from cutline.cloud.serving.limits import SERVING_LIMITS, ServingLimits
from cutline.cloud.serving.server import Access, WorkerOptions, serve
from cutline.errors import AccessDenied, InputError, WorkerBusy, WorkerUnavailable
from cutline.models.bundle import Bundle
from cutline.protos.channel import credentials
from cutline.protos.channel.credentials import NO_KEYS, TENANT_KEY, AgentKeys, ServerKeys, read_private, read_public
from cutline.protos.channel.token_file import Tokens, token_entry
from cutline.protos.client import WorkerClient
from cutline.protos.messages import Confirmed, Finished, ImageChunk, Open, image_chunks

Case = tuple[Open, bytes, tuple[int, ...]]

TOKEN, OTHER = "a-token-of-the-warehouse", "and-one-of-the-harbour"
SECONDS = 120
OPEN_CALLS = CALL_LIMITS.open_calls
HEALTH = ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch")


class Fleet:
    """Files of an authority, a server, a device and two tenants' tokens."""

    def __init__(self, folder: Path) -> None:
        authority = Authority.make(folder / "keys")
        server = authority.sign("server", SERVER, hosts=["localhost", "127.0.0.1"])
        self.device = authority.sign("camera", DEVICE)
        authority.write()
        self.authority = authority
        self.ca = pair_of(authority.folder, "ca").certificate
        self.tokens = folder / "tokens.toml"
        self.tokens.write_text(token_entry("warehouse", TOKEN) + token_entry("harbour", OTHER))
        self.server = ServerKeys(certificate=server.certificate, key=server.key)

    def agent(self, token: str = "", *, certificate: bool = False) -> AgentKeys:
        keys = AgentKeys(ca=self.ca, token=token)
        if certificate:
            keys = replace(keys, certificate=self.device.certificate, key=self.device.key)
        return keys


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet(tmp_path_factory.mktemp("fleet"))


@contextlib.asynccontextmanager
async def worker(bundle: Bundle, limits: ServingLimits = SERVING_LIMITS, **access: Any) -> AsyncIterator[str]:
    options = WorkerOptions(slots=2, context=256, limits=limits)
    async with serve(bundle, options, access=Access(**access)) as address:
        yield address


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(SECONDS):
            await main()

    asyncio.run(limited())


async def methods(channel: Any, metadata: tuple[tuple[str, str], ...]) -> list[str]:
    """Every method of every service, as the running server itself lists them."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    found = []

    async def asks(**what: str) -> Any:
        async def once() -> AsyncIterator[Any]:
            yield reflection_pb2.ServerReflectionRequest(**what)

        return await anext(aiter(stub.ServerReflectionInfo(once(), metadata=metadata)))

    for service in (await asks(list_services="")).list_services_response.service:
        answer = await asks(file_containing_symbol=service.name)
        file = descriptor_pb2.FileDescriptorProto.FromString(answer.file_descriptor_response.file_descriptor_proto[0])
        package, _, name = service.name.rpartition(".")
        assert file.package == package
        (described,) = [one for one in file.service if one.name == name]
        found += [f"/{service.name}/{method.name}" for method in described.method]
    return found


async def status(channel: Any, method: str, metadata: tuple[tuple[str, str], ...] = ()) -> grpc.StatusCode:
    """What a call with one empty message ends with; OK if it says anything first."""
    # In one piece, for gRPC's client fails a write to a call that is refused by then.
    call = channel.unary_stream(method)(b"", metadata=metadata)
    with contextlib.suppress(grpc.aio.AioRpcError):
        if await call.read() is not grpc.aio.EOF:
            call.cancel()
            return grpc.StatusCode.OK
    code: grpc.StatusCode = await call.code()
    return code


@pytest.mark.threat("doors")
def test_every_method_of_every_service_is_denied_to_strangers_but_health(bundle: Bundle, fleet: Fleet) -> None:
    known = (("authorization", f"Bearer {TOKEN}"),)
    strangers: list[tuple[tuple[str, str], ...]] = [
        (),
        (("authorization", ""),),
        (("authorization", "Bearer "),),
        (("authorization", "Bearer wrong"),),
        (("authorization", TOKEN),),
        (("authorization", f"Basic {TOKEN}"),),
        (("authorization", f"Bearer {TOKEN} "),),
        (("authorization", f"Bearer {hashlib.sha256(TOKEN.encode()).hexdigest()}"),),
        (*known, *known),
        (*known, (TENANT_KEY, "../harbour")),
        (("x-authorization", f"Bearer {TOKEN}"),),
    ]

    async def main() -> None:
        async with (
            worker(bundle, tokens=fleet.tokens) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            found = await methods(channel, known)
            assert {"/cutline.v1.Worker/Session", "/cutline.v1.Worker/Describe", *HEALTH} <= set(found)
            assert any("reflection" in method for method in found)
            for method in [*found, "/cutline.v1.Worker/Hidden", "/no.such.Service/Method"]:
                for metadata in strangers:
                    code = await status(channel, method, metadata)
                    expected = grpc.StatusCode.OK if method in HEALTH else grpc.StatusCode.UNAUTHENTICATED
                    assert code is expected, (method, metadata)
            for method in found:
                assert await status(channel, method, known) is not grpc.StatusCode.UNAUTHENTICATED, method
            assert await status(channel, "/no.such.Service/Method", known) is grpc.StatusCode.UNIMPLEMENTED

    run(main)


@pytest.mark.threat("floods")
def test_only_so_many_without_a_name_watch_at_once(bundle: Bundle, fleet: Fleet) -> None:
    limits = ServingLimits(calls=CallLimits(open_calls=2))

    async def main() -> None:
        async with (
            worker(bundle, limits, tokens=fleet.tokens) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            watch = channel.unary_stream(
                HEALTH[1], health_pb2.HealthCheckRequest.SerializeToString, health_pb2.HealthCheckResponse.FromString
            )
            watching = [watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
            for call in watching:
                assert (await call.read()).status == health_pb2.HealthCheckResponse.SERVING
            assert await status(channel, HEALTH[1]) is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await status(channel, HEALTH[0]) is grpc.StatusCode.OK  # is still told to who only asks
            watching[0].cancel()
            while await status(channel, HEALTH[1]) is not grpc.StatusCode.OK:
                pass
            watching[1].cancel()

    run(main)


@pytest.mark.threat("floods")
def test_who_watches_does_so_for_a_time(bundle: Bundle, fleet: Fleet) -> None:
    limits = ServingLimits(calls=CallLimits(watch_seconds=0.05))

    async def main() -> None:
        async with (
            worker(bundle, limits, tokens=fleet.tokens) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            call = channel.unary_stream(HEALTH[1])(b"")
            assert await call.read() == health_pb2.HealthCheckResponse(status=1).SerializeToString()
            assert await call.read() is grpc.aio.EOF
            assert await call.code() is grpc.StatusCode.OK

    run(main)


@pytest.mark.threat("floods")
def test_calls_whose_message_never_comes_hold_no_place(bundle: Bundle, fleet: Fleet) -> None:
    """A stranger's are refused at once, a tenant's after a while; of health's those that wait longest give way."""
    soon, late = (ServingLimits(calls=CallLimits(open_calls=2, request_seconds=one)) for one in (0.3, SECONDS))
    known = (("authorization", f"Bearer {TOKEN}"),)

    async def main() -> None:
        async with worker(bundle, soon, tokens=fleet.tokens) as address, grpc.aio.insecure_channel(address) as channel:
            describe = channel.stream_unary("/cutline.v1.Worker/Describe")
            assert await describe().code() is grpc.StatusCode.UNAUTHENTICATED
            assert await describe(metadata=known).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        async with worker(bundle, late, tokens=fleet.tokens) as address, grpc.aio.insecure_channel(address) as channel:
            assert await status(channel, HEALTH[0]) is grpc.StatusCode.OK  # connected, so that calls come in order
            silent = [channel.stream_unary(HEALTH[0])() for _ in range(3)]
            assert await silent[0].code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert await status(channel, HEALTH[0]) is grpc.StatusCode.OK
            assert await silent[1].code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert not silent[2].done()
            silent[2].cancel()

    run(main)


@pytest.mark.threat("floods")
def test_no_tenant_fills_the_workers_calls(bundle: Bundle, fleet: Fleet) -> None:
    """By streams that say nothing, which end by themselves, too."""
    limits = ServingLimits(more_calls=10, calls=CallLimits(stream_seconds=1.0))
    known = (("authorization", f"Bearer {TOKEN}"),)

    async def main() -> None:
        async with (
            worker(bundle, limits, tokens=fleet.tokens) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            stream = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
            calls = [stream(metadata=known) for _ in range(12)]  # as many as it takes at once
            ended = {asyncio.create_task(call.code()) for call in calls}
            refused = set[asyncio.Task[grpc.StatusCode]]()
            while len(refused) < 4:
                done, ended = await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
                refused |= done
            assert {task.result() for task in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            assert await status(channel, HEALTH[0]) is grpc.StatusCode.OK
            async with WorkerClient(address, AgentKeys(token=OTHER)) as other:
                await other.describe()
            done, _ = await asyncio.wait(ended)
            assert [task.result() for task in done] == [grpc.StatusCode.DEADLINE_EXCEEDED] * 8

    run(main)


async def answered(address: str, case: Case) -> bool:
    """Whether another tenant is answered, or told that there is no place."""
    try:
        assert await answer(address, AgentKeys(token=OTHER), case) == case[2]
    except WorkerBusy:
        return False
    return True


@pytest.mark.threat("floods")
def test_slow_openers_of_one_tenant_keep_no_place_from_another(bundle: Bundle, fleet: Fleet, case: Case) -> None:
    """Nor do streams that say nothing at all; each might hold its place for a minute."""
    known = (("authorization", f"Bearer {TOKEN}"),)
    half = ImageChunk(case[1][: len(case[1]) // 2], last=False)

    async def main() -> None:
        async with (
            worker(bundle, ServingLimits(slow_seconds=0.0), tokens=fleet.tokens) as address,
            grpc.aio.insecure_channel(address) as channel,
            WorkerClient(address, AgentKeys(token=TOKEN)) as client,
            client.session(case[0], [half], timeout=SECONDS) as first,
            client.session(case[0], [half], timeout=SECONDS) as second,
        ):
            silent = [channel.stream_stream("/cutline.v1.Worker/Session")(metadata=known) for _ in range(2)]
            ends = [asyncio.ensure_future(anext(session.events())) for session in (first, second)]
            async with asyncio.timeout(SECONDS):
                while not any(end.done() for end in ends):
                    await answered(address, case)  # once the slow have all places, one of them loses its
                while not await answered(address, case):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            with pytest.raises(WorkerBusy, match="took long to open"):
                await done.pop()
            assert [end.done() for end in ends].count(False) == 1
            assert not any(call.done() for call in silent)
            for call in silent:
                call.cancel()
            for end in ends:
                end.cancel()

    run(main)


def test_where_nobody_has_a_name_health_still_answers(bundle: Bundle) -> None:
    """Whoever asks may fill all calls but those."""

    async def main() -> None:
        async with (
            worker(bundle, ServingLimits(more_calls=10)) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            stream = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
            calls = [stream() for _ in range(12)]
            ended = {asyncio.create_task(call.code()) for call in calls}
            refused = set[asyncio.Task[grpc.StatusCode]]()
            while len(refused) < 4:
                done, ended = await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
                refused |= done
            assert {task.result() for task in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
            assert await status(channel, HEALTH[0]) is grpc.StatusCode.OK
            assert await status(channel, "/cutline.v1.Worker/Describe") is grpc.StatusCode.RESOURCE_EXHAUSTED
            for call in calls:
                call.cancel()
            await asyncio.wait(ended)

    run(main)


@given(st.lists(st.sampled_from("abcd"), max_size=60), st.integers(6, 40))
def test_a_tenant_that_has_few_calls_finds_room_for_more(come: list[str], calls: int) -> None:
    """One tenant leaves a third for those that come later, whoever of them comes first."""
    held: Counter[str] = Counter()
    for tenant in come:
        if held.total() < calls and may_call(held, calls, tenant, OPEN_CALLS):
            held[tenant] += 1
    assert max(held.values(), default=0) <= calls - calls // 3
    if len(held) == 1:
        assert may_call(held, calls, "new", OPEN_CALLS)
        assert held.total() < calls


async def answer(address: str, keys: AgentKeys, case: Case) -> tuple[int, ...]:
    said: list[int] = []
    async with (
        WorkerClient(address, keys) as client,
        client.session(case[0], list(image_chunks(case[1])), timeout=SECONDS) as session,
    ):
        async for event in session.events():
            if isinstance(event, Confirmed):
                said += event.tokens
    assert isinstance(session.finished, Finished)
    return tuple(said)


def test_sessions_know_their_tenant(bundle: Bundle, fleet: Fleet, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """By token, by certificate, and by token where both are shown; and the answer is right over TLS."""
    heard: list[str] = []
    real = auth.Callers.find

    def find(*given: Any) -> Caller:
        caller = real(*given)
        heard.append(caller.name)
        return caller

    monkeypatch.setattr(auth.Callers, "find", find)

    async def main() -> None:
        async with worker(bundle, keys=fleet.server, tokens=fleet.tokens) as address:
            assert await answer(address, fleet.agent(TOKEN), case) == case[2]
            assert await answer(address, fleet.agent(OTHER), case) == case[2]
        mutual = replace(fleet.server, client_ca=fleet.ca)
        async with worker(bundle, keys=mutual) as address:
            assert await answer(address, fleet.agent(certificate=True), case) == case[2]
        async with worker(bundle, keys=mutual, tokens=fleet.tokens) as address:
            assert await answer(address, fleet.agent(TOKEN, certificate=True), case) == case[2]
            with pytest.raises(AccessDenied):  # a wrong token does not fall back on the certificate
                await answer(address, fleet.agent("wrong", certificate=True), case)

    run(main)
    assert heard == ["warehouse", "harbour", "camera", "warehouse"]


def limited(fleet: Fleet, tmp_path: Path, limits: str) -> Path:
    """A tokens file in which the warehouse has `limits`."""
    file = tmp_path / "limited.toml"
    file.write_text(f"{fleet.tokens.read_text()}\n[tenant.warehouse]\n{limits}\n")
    return file


def test_who_sends_more_than_it_may_hears_when_to_try_again(
    bundle: Bundle, fleet: Fleet, case: Case, tmp_path: Path
) -> None:
    """And not that its opening was wrong, which took so long because it was held up."""
    limits = ServingLimits(opening_seconds=0.3)
    tokens = limited(fleet, tmp_path, "upload_mb_per_second = 0.001")

    async def main() -> None:
        async with (
            worker(bundle, limits, tokens=tokens) as address,
            WorkerClient(address, AgentKeys(token=TOKEN)) as client,
        ):
            half = ImageChunk(bytes(40_000), last=False)
            async with client.session(case[0], [half], timeout=SECONDS) as session:
                with pytest.raises(WorkerBusy, match="MB a second") as refused:
                    await anext(session.events())
            assert 20 < refused.value.retry_seconds < 60

    run(main)


@pytest.mark.threat("floods")
def test_few_streams_that_there_is_no_place_for_are_waited_for(
    bundle: Bundle, fleet: Fleet, case: Case, tmp_path: Path
) -> None:
    limits = ServingLimits(linger_seconds=10 * SECONDS)
    tokens = limited(fleet, tmp_path, "sessions = 1")
    known = (("authorization", f"Bearer {TOKEN}"),)

    async def main() -> None:
        async with (
            worker(bundle, limits, tokens=tokens) as address,
            WorkerClient(address, AgentKeys(token=TOKEN)) as client,
            grpc.aio.insecure_channel(address) as channel,
            client.session(replace(case[0], effort=0.0), list(image_chunks(case[1])), timeout=SECONDS) as session,
        ):
            await anext(session.events())
            # Whom of its own a tenant asks for gives it no more.
            asked = [(*known, (TENANT_KEY, f"camera-{number}")) for number in range(3)]
            calls = [channel.stream_stream("/cutline.v1.Worker/Session")(metadata=metadata) for metadata in asked]
            for call in calls:
                assert await call.read() is not grpc.aio.EOF  # when to try again
            codes = [asyncio.create_task(call.code()) for call in calls]
            await asyncio.wait(codes, return_when=asyncio.FIRST_COMPLETED)
            done, waited = await asyncio.wait(codes, timeout=0.3)
            assert [one.result() for one in done] == [grpc.StatusCode.RESOURCE_EXHAUSTED]
            assert len(waited) == 2  # as many as there are slots
            for call in calls:
                call.cancel()
            await asyncio.wait(waited)

    run(main)


@pytest.mark.threat("floods")
def test_calls_of_strangers_make_few_lines(
    bundle: Bundle, fleet: Fleet, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cutline.cloud.telemetry.log_limit.PAUSE_SECONDS", 0.2)

    async def main() -> None:
        async with worker(bundle, tokens=fleet.tokens) as address, grpc.aio.insecure_channel(address) as channel:
            began = time.monotonic()
            for _ in range(30):
                assert await status(channel, "/cutline.v1.Worker/Describe") is grpc.StatusCode.UNAUTHENTICATED
            await asyncio.sleep(0.25)
            lines = [record for record in caplog.records if record.message == "denied"]
            assert len(lines) <= 2 + (time.monotonic() - began) / 0.2
            assert sum(vars(record)["fields"]["count"] for record in lines) == 30

    with caplog.at_level(logging.INFO, logger="cutline"):
        run(main)


def test_who_is_denied_hears_so_while_it_uploads(bundle: Bundle, fleet: Fleet, case: Case) -> None:
    """Though gRPC fails a write to a call that has ended, and then tells of nothing else."""

    async def main() -> None:
        async with worker(bundle, tokens=fleet.tokens) as address:
            for _ in range(20):
                with pytest.raises(AccessDenied):
                    await answer(address, AgentKeys(token="wrong"), case)

    run(main)


def test_handshakes_that_fail_say_why(bundle: Bundle, fleet: Fleet, tmp_path: Path, case: Case) -> None:
    strange = Authority.make(tmp_path / "strange")
    stranger = strange.sign("camera", DEVICE)
    abroad = fleet.authority.sign("abroad", SERVER, hosts=["worker.example"])
    for authority in (strange, fleet.authority):
        authority.write()
    elsewhere = ServerKeys(certificate=abroad.certificate, key=abroad.key)
    not_ours = AgentKeys(ca=pair_of(strange.folder, "ca").certificate, token=TOKEN)
    forged = replace(fleet.agent(), certificate=stranger.certificate, key=stranger.key)
    as_server = replace(fleet.agent(), certificate=fleet.server.certificate, key=fleet.server.key)

    async def refused(shown: AgentKeys, words: str, **access: Any) -> None:
        async with worker(bundle, **access) as address, WorkerClient(address, shown) as client:
            with pytest.raises(WorkerUnavailable, match=words):
                await client.describe()

    async def main() -> None:
        mutual = replace(fleet.server, client_ca=fleet.ca)
        await refused(not_ours, "vouches", keys=fleet.server, tokens=fleet.tokens)
        await refused(fleet.agent(TOKEN), "another host", keys=elsewhere, tokens=fleet.tokens)
        await refused(NO_KEYS, "wants TLS", keys=fleet.server, tokens=fleet.tokens)
        await refused(fleet.agent(TOKEN), "plain text", tokens=fleet.tokens)
        await refused(fleet.agent(TOKEN), "--cert", keys=mutual)
        await refused(forged, "--cert", keys=mutual)
        await refused(as_server, "--cert", keys=mutual)

    run(main)


def test_a_certificate_that_changes_counts_without_a_restart(bundle: Bundle, fleet: Fleet, tmp_path: Path) -> None:
    """One that its agents do not trust, then the right one; and one that does not read changes nothing."""
    authority = Authority.make(tmp_path / "strange")
    strange = authority.sign("server", SERVER, hosts=["127.0.0.1"])
    authority.write()
    keys = ServerKeys(certificate=tmp_path / "now.crt", key=tmp_path / "now.key")

    def put(certificate: bytes, key: bytes) -> None:
        keys.key.write_bytes(key)
        keys.certificate.write_bytes(certificate)
        keys.key.chmod(0o600)

    async def describe(address: str) -> None:
        async with WorkerClient(address, fleet.agent(TOKEN)) as client:
            await client.describe()

    async def main() -> None:
        put(strange.certificate.read_bytes(), strange.key.read_bytes())
        async with worker(bundle, keys=keys, tokens=fleet.tokens) as address:
            with pytest.raises(WorkerUnavailable, match="vouches"):
                await describe(address)
            put(fleet.server.certificate.read_bytes(), fleet.server.key.read_bytes())
            await describe(address)
            put(b"half a cert", b"")
            await describe(address)

    run(main)


def test_tokens_are_read_anew_and_compared_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(token_entry("a", "one") + token_entry("b", "two"))
    tokens, compared, really = Tokens(file), list[tuple[str, str]](), hmac.compare_digest

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return really(one, other)

    monkeypatch.setattr("cutline.protos.channel.token_file.hmac.compare_digest", compare)
    assert tokens.tenant("one") == "a"
    assert [(one, len(other)) for one, other in compared] == [
        (hashlib.sha256(token).hexdigest(), 64) for token in (b"one", b"two")
    ]
    assert tokens.tenant("three") is None
    assert len(compared) == 4
    file.write_text(token_entry("b", "two") + token_entry("c", "three"))
    assert (tokens.tenant("one"), tokens.tenant("three")) == (None, "c")
    file.write_text("[[token")
    assert tokens.tenant("three") == "c"
    file.unlink()
    assert tokens.tenant("three") == "c"
    file.write_text("")
    assert tokens.tenant("three") is None


@pytest.mark.parametrize(
    "text",
    [
        "[[token",
        "\0",
        "\xff",
        "token = 3",
        '[[token]]\ntenant = "a"\n',
        '[[token]]\ntenant = "a"\nsha256 = "0"\n',
        f'[[token]]\ntenant = "a/b"\nsha256 = "{"0" * 64}"\n',
        f'[[token]]\ntenant = "a\\n"\nsha256 = "{"0" * 64}"\n',
        f'[[token]]\ntenant = ""\nsha256 = "{"0" * 64}"\n',
        f'[[token]]\ntenant = "a"\nsha256 = "{"0" * 64}\\n"\n',
        f'[[token]]\ntenant = "a"\nsha256 = "{"0" * 64}"\nadmin = true\n',
        "[tenant.a]\nsessions = 0\n",
        "[tenant.a]\nsession = 1\n",
        "[tenant.a]\nopenings_per_minute = -1\n",
        "a = " + "[" * 100_000,
    ],
)
def test_a_tokens_file_that_does_not_read(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(InputError):
        Tokens(file)


@pytest.mark.threat("handles", "caches")
def test_no_tenant_can_name_what_is_anothers(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(token_entry("a", "one") + token_entry("ab", "two"))
    callers = Callers(Tokens(file))

    def name(token: str, *within: str) -> str:
        metadata = [("authorization", f"Bearer {token}"), *((TENANT_KEY, one) for one in within)]
        return callers.find(metadata, {}).name

    mine = {name("one"), name("one", "b"), name("one", "a"), name("one", "b/c"), name("one", "ab")}
    others = {name("two"), name("two", "b"), name("two", "a"), name("two", "c"), name("two", "b/c")}
    assert len(mine | others) == 10
    for within in ("/b", "..", "a b", "", "\n", "a" * 300, "a\n"):
        if within:
            with pytest.raises(AccessDenied):
                name("one", within)
    assert Callers().find([(TENANT_KEY, "a")], {}) == Caller("", "a")


def test_nobody_is_served_who_did_not_come_through_the_gate() -> None:
    with pytest.raises(LookupError):
        CALLER.get()


def test_keys_that_others_can_read_or_that_are_none(fleet: Fleet, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\n")
    token.chmod(0o644)
    with pytest.raises(InputError, match="everybody"):
        AgentKeys(token_file=token).check()
    token.chmod(0o600)
    keys = AgentKeys(token_file=token)
    keys.check()
    assert keys.metadata() == (("authorization", f"Bearer {TOKEN}"),)
    token.write_text("renewed")
    assert keys.metadata() == (("authorization", "Bearer renewed"),)
    for content in ("", "two words", "\x7f", "ü", "x" * 5000):
        token.write_text(content)
        with pytest.raises(InputError):
            keys.check()
    assert TOKEN not in repr(AgentKeys(token=TOKEN))
    open_key = tmp_path / "open.key"
    open_key.write_bytes(fleet.device.key.read_bytes())
    open_key.chmod(0o604)
    for bad in (
        AgentKeys(ca=tmp_path / "none"),
        AgentKeys(ca=token),
        AgentKeys(certificate=fleet.device.certificate, key=fleet.device.key),
        AgentKeys(ca=fleet.ca, certificate=fleet.device.certificate),
        AgentKeys(ca=fleet.ca, certificate=fleet.device.certificate, key=fleet.server.key),
        AgentKeys(ca=fleet.ca, certificate=fleet.device.certificate, key=open_key),
    ):
        with pytest.raises(InputError):
            bad.check()


@pytest.mark.parametrize(
    "read", [functools.partial(read_private, what="key"), functools.partial(read_public, what="ca")]
)
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, read: Callable[[Path], bytes]) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for path in (pipe, tmp_path, Path("/dev/zero")):
        with pytest.raises(InputError):
            read(path)


def test_the_pair_that_is_checked_is_the_one_that_is_used(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the file is another one, that all may read, a moment later."""
    key = tmp_path / "key"
    key.write_bytes(fleet.server.key.read_bytes())
    key.chmod(0o600)

    def read(path: Path, *, what: str) -> bytes:
        content = read_private(path, what=what)
        path.write_bytes(fleet.device.key.read_bytes())
        path.chmod(0o644)
        return content

    monkeypatch.setattr(credentials, "read_private", read)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pair = credentials.load_pair(context, fleet.server.certificate, key)
    assert pair == (fleet.server.certificate.read_bytes(), fleet.server.key.read_bytes())


def test_an_authoritys_key_is_for_its_owner(tmp_path: Path) -> None:
    authority = Authority.make(tmp_path / "keys")
    authority.write()
    secret = pair_of(authority.folder, "ca").key
    Authority.open(authority.folder)
    secret.chmod(0o644)
    with pytest.raises(InputError, match="everybody"):
        Authority.open(authority.folder)
    secret.unlink()
    with pytest.raises(InputError, match="keys init"):
        Authority.open(authority.folder)


@pytest.mark.parametrize("address", ["192.0.2.1:1", "worker.example:1", "[2001:db8::1]:1", "127.0.0.1.example:1"])
def test_plain_text_stays_on_this_machine(address: str) -> None:
    async def main() -> None:
        WorkerClient(address)

    with pytest.raises(InputError, match="plain text"):
        asyncio.run(main())


def test_neither_log_nor_audit_has_a_token(
    bundle: Bundle, fleet: Fleet, case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with worker(bundle, tokens=fleet.tokens) as address:
            await answer(address, AgentKeys(token=TOKEN), case)
            with pytest.raises(AccessDenied):
                await answer(address, AgentKeys(token="guessed"), case)

    with caplog.at_level(logging.DEBUG, logger="cutline"):
        run(main)
    said = " ".join(str(vars(record)) for record in caplog.records)
    denials = [record for record in caplog.records if record.name == "cutline.audit" and record.message == "denied"]
    assert [vars(record)["fields"]["method"] for record in denials] == ["/cutline.v1.Worker/Session"]
    for secret in (TOKEN, "guessed", hashlib.sha256(TOKEN.encode()).hexdigest()):
        assert secret not in said
