"""A worker that hangs leaves nothing behind, whoever ends first."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import psutil
import pytest

from cutline.cli.access.certificates import DEVICE, SERVER, Authority, Pair, pair_of
from cutline.cloud.cluster import supervisor
from cutline.cloud.cluster.members import Endpoints
from cutline.cloud.cluster.supervisor import Supervisor
from cutline.cloud.serving.server import Access, WorkerOptions, serve
from cutline.demo.bundles import TARGET
from cutline.errors import WorkerFailed
from cutline.models.bundle import Bundle
from cutline.protos.channel import credentials
from cutline.protos.channel.credentials import AgentKeys, ServerKeys
from cutline.protos.channel.token_file import token_entry

PACKAGE = Path(__file__).resolve().parents[3] / ".dev"
SECONDS = 60.0  # for what should take a few tenths

# Both in place of `cutline`: they say who they are, and wait.
TIED = """
import os, signal, sys
from cutline.core import tied
def waits(*_):
    print(os.getpid(), flush=True)
    signal.pause()
os.execv = waits
tied.main()
"""
PARENT = f"""
import os, subprocess, sys, signal
subprocess.Popen([sys.executable, "-c", {TIED!r}, str(os.getpid())])
signal.pause()
"""


def test_a_worker_that_hangs_ends_with_its_supervisor() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PACKAGE)},
    ) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))
        worker.suspend()
        parent.kill()
        try:
            worker.wait(SECONDS)
        finally:
            if worker.is_running():
                worker.kill()


def test_a_supervisor_kills_a_worker_that_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho 'worker listens at 127.0.0.1:1'\nexec sleep 60\n")
    fake.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(fake))

    async def kill() -> None:
        one = Supervisor((), threads=1, drain=0.0)
        await one.kill()  # of no effect where nothing is
        one = Supervisor((), threads=1, drain=0.0)
        before = set(psutil.Process().children())  # other tests' own may be among them
        assert await one.start() == Endpoints("127.0.0.1:1")
        (worker,) = set(psutil.Process().children()) - before
        os.kill(worker.pid, signal.SIGSTOP)
        async with asyncio.timeout(SECONDS):
            await one.kill()
        assert not worker.is_running()

    asyncio.run(kill())


@contextlib.asynccontextmanager
async def looked_after(
    monkeypatch: pytest.MonkeyPatch, folder: Path, keys: AgentKeys, access: Access
) -> AsyncIterator[Supervisor]:
    """A worker of this process, and a supervisor that takes it for another that is its own."""
    monkeypatch.setattr(supervisor, "MISSES", 2)
    async with serve(Bundle.open(TARGET), WorkerOptions(slots=1, context=64), access=access) as address:
        fake = folder / "python"
        fake.write_text(f"#!/bin/sh\necho 'worker listens at {address}'\nexec sleep 60\n")
        fake.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(fake))
        one = Supervisor((), keys=keys, threads=1, drain=0.0)
        assert await one.start() == Endpoints(address)
        try:
            async with asyncio.timeout(SECONDS):
                yield one
        finally:
            await one.kill()


def test_a_worker_that_answers_lives_whatever_becomes_of_its_supervisors_token(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """While the file is written, and while the worker knows another token; not if that was never otherwise."""
    tokens, token = tmp_path / "tokens.toml", tmp_path / "token"
    tokens.write_text(token_entry("cluster", "right"))

    def put(content: str) -> None:
        token.write_text(content)
        token.chmod(0o600)

    async def main() -> None:
        access = Access(tokens=tokens)
        put("right")
        async with looked_after(monkeypatch, tmp_path, AgentKeys(token_file=token), access) as one:
            first = await one.look(0.0)
            for content in ("", "wrong", ""):
                put(content)
                for _ in range(3):
                    assert await one.look(0.0) == first
            token.unlink()
            assert await one.look(0.0) == first
            put("right")
            assert (await one.look(0.0)).model == first.model
        put("wrong")
        async with looked_after(monkeypatch, tmp_path, AgentKeys(token_file=token), access) as one:
            with pytest.raises(WorkerFailed, match="does not know the token"):
                await one.look(0.0)

    asyncio.run(main())


def test_a_supervisor_whose_certificate_is_renewed_looks_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By new connections to all that it asks; in the end none of them is left open."""
    channels, opened = list[grpc.aio.Channel](), credentials.open_channel

    def counted(address: str, keys: AgentKeys) -> grpc.aio.Channel:
        channels.append(opened(address, keys))
        return channels[-1]

    monkeypatch.setattr("cutline.protos.channel.connection.open_channel", counted)
    authority = Authority.make(tmp_path / "keys")
    server = authority.sign("server", SERVER, hosts=["127.0.0.1"])
    ca = pair_of(authority.folder, "ca").certificate
    now = Pair(tmp_path / "now.crt", tmp_path / "now.key")

    def put(pair: Pair) -> None:
        now.certificate.write_bytes(pair.certificate.read_bytes())
        now.key.write_bytes(pair.key.read_bytes())
        now.key.chmod(0o600)

    first, second = (authority.sign(name, DEVICE) for name in ("supervisor", "supervisor-again"))
    authority.write()
    put(first)
    keys = ServerKeys(certificate=server.certificate, key=server.key, client_ca=ca)

    async def main() -> None:
        agent = AgentKeys(ca=ca, certificate=now.certificate, key=now.key)
        async with looked_after(monkeypatch, tmp_path, agent, Access(keys=keys)) as one:
            await one.look(0.0)
            assert len(channels) == 2
            put(second)
            await one.look(0.0)
            assert len(channels) == 4
        for channel in channels:
            with pytest.raises(grpc.aio.UsageError):
                await channel.unary_unary("/a/b")(b"")

    asyncio.run(main())
