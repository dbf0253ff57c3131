"""`cutline cluster` on a Ray of two nodes: workers that die are started again, and a cluster leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, get_type_hints
from urllib.request import urlopen

import psutil
import pytest
from rich.console import Console

from cutline.cli.cloud import cloud
from cutline.cli.cluster import _FILES, _table
from cutline.cloud.cluster.ray_env import prepare
from cutline.core.conversation import Message, TextPart
from cutline.core.request import Mode, Request
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.demo.cards import Split
from cutline.demo.reference import Reference
from cutline.demo.requests import requests
from cutline.edge.agent import Agent
from cutline.edge.generation.result import Answer
from cutline.edge.offload.discovery import ListedWorkers
from cutline.errors import BundleError, InputError, WorkerUnavailable
from cutline.models.bundle import Bundle
from cutline.models.prompt import PromptBuilder
from cutline.protos.channel.credentials import AgentKeys, ServerKeys
from cutline.protos.client import WorkerClient
from cutline.protos.directory import DirectoryClient, ListedWorker, Listing, Standing
from cutline.protos.messages import Confirmed, Draft, Open

Start = Callable[..., Any]
Run = Callable[..., Any]

PACKAGE = Path(__file__).resolve().parents[2] / ".dev"
SECONDS = 240  # for what should take a few: a busy machine takes minutes to start the many processes of Ray
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
PATIENCE = "RAY_gcs_rpc_server_reconnect_timeout_s"

# In a process of its own, for Ray changes what imports it. The least store that Ray takes, twice.
TWO_NODES = """
import sys
from ray.cluster_utils import Cluster
node = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=node)
cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def ray() -> Iterator[dict[str, str]]:
    """The environment in which a Ray of two nodes can be used: its token, and its address as RAY_ADDRESS."""
    pytest.importorskip("ray")
    token = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "f" * 64,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_memory_monitor_refresh_ms": "0",  # on a machine whose memory others fill it would kill workers
    }
    environment = os.environ | token | {"PYTHONPATH": str(PACKAGE), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", TWO_NODES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as popen:
        assert popen.stdout is not None
        address = popen.stdout.readline().strip()
        assert address, "Ray did not start"
        yield token | {"RAY_ADDRESS": address}
        popen.communicate(timeout=SECONDS)  # which ends its stdin


def worker_at(address: str) -> psutil.Process:
    """The process of a worker."""
    port = int(address.rpartition(":")[2])
    for process in psutil.process_iter():
        try:
            if any(one.laddr.port == port and one.status == "LISTEN" for one in process.net_connections("tcp")):
                return process
        except psutil.Error:
            continue
    raise AssertionError(f"nobody listens at {address}")


def listing(directory: str) -> Listing:
    async def ask() -> Listing:
        async with DirectoryClient(directory) as client:
            return await client.list()

    return asyncio.run(ask())


def wait_for(directory: str, holds: Callable[[set[str]], bool]) -> list[str]:
    """The addresses in the directory, once they are as they should be."""
    until = time.monotonic() + SECONDS
    while not holds(set(found := [one.address for one in listing(directory).workers])):
        assert time.monotonic() < until, f"the directory still lists {found}"
        time.sleep(0.1)
    return found


class NotedWorkers(ListedWorkers):
    """Workers of a directory that say whom an agent is about to ask."""

    first: asyncio.Future[str] | None = None  # is to have the address of the next that is chosen by anybody

    def choose(self, *, first: str | None = None, but: Collection[str] = ()) -> WorkerClient | None:
        client = super().choose(first=first, but=but)
        if client is not None and self.first is not None and not self.first.done():
            self.first.set_result(client.address)
        return client


async def ask_while_killing(directory: str) -> str:
    """Four agents at once ask both workers; one that an agent is about to ask is killed in the middle of its sessions.

    Returns its address. Which one it is, is chance: on a busy machine even one that was listed may be replaced already.
    """
    drafter, dead = Bundle.open(DRAFTER), asyncio.Event()
    first: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    asked = list(requests(Split.EVALUATION, 1, seed=11))
    reference = Reference(Bundle.open(TARGET))
    truths = [reference.answer(one.image, one.question.text) for one in asked]
    model = drafter.manifest.target
    assert model is not None

    async def ask(mode: Mode) -> list[Answer]:
        workers, answers = NotedWorkers(directory, model=model), list[Answer]()
        async with Agent(drafter, worker=workers, threads=1, notice=10.0) as agent:  # a busy machine is no dead one
            while not dead.is_set() or len(answers) < len(asked):
                one, truth = asked[len(answers) % len(asked)], truths[len(answers) % len(asked)]
                question = Request.about(one.image, one.question.text, mode=mode, max_tokens=64)
                answers.append(await agent.answer(question))
                workers.first = first
                assert tuple(token.id for token in answers[-1].tokens) == truth
        return answers

    async def kill() -> str:
        killed = worker_at(await first)
        killed.suspend()  # who asks it from here on, or has asked it, waits
        await asyncio.sleep(1.0)
        killed.kill()
        dead.set()
        return first.result()

    async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as group:
        asking = [group.create_task(ask(mode)) for mode in (Mode.CLOUD, Mode.DRAFT) * 2]
        killing = group.create_task(kill())
    answers, address = [answer for task in asking for answer in task.result()], killing.result()
    assert all(answer.exact for answer in answers)
    assert any(lost.worker == address for answer in answers for lost in answer.lost)
    assert {answer.worker for answer in answers} > {address}
    return address


@pytest.mark.timeout(600)  # Ray and its workers are many processes
def test_a_cluster_keeps_its_workers(
    start: Start, run: Run, ray: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ray.items():
        monkeypatch.setenv(name, value)
    up = start(
        "cluster", "up", "--address", ray["RAY_ADDRESS"], "--workers", 2, "--insecure", "--listen", "127.0.0.1:0"
    )
    directory = up.address()
    wait_for(directory, lambda found: len(found) == 2)
    killed = asyncio.run(ask_while_killing(directory))
    second = wait_for(directory, lambda found: len(found) == 2 and killed not in found)
    shown = json.loads(run("cluster", "status", directory, "--json").out)
    assert {one["name"] for one in shown["workers"]} == {"worker-0", "worker-1"}
    assert any(one["failures"] for one in shown["workers"])
    assert shown["wanted"] == 2

    # A supervisor that is killed takes its worker along: no GPU is held by one that nobody knows.
    other = worker_at(second[0])
    supervisor = other.parent()
    assert supervisor is not None
    supervisor.kill()
    third = wait_for(directory, lambda found: len(found) == 2 and second[0] not in found)
    other.wait(SECONDS)

    workers = [worker_at(address) for address in third]
    up.signal(signal.SIGTERM)
    ran = up.finish()
    assert ran.code == 0, ran.err
    assert "Traceback" not in ran.err
    assert psutil.wait_procs(workers, timeout=SECONDS)[1] == []
    assert run("cluster", "status", directory).failed(4)


@pytest.mark.proof
@pytest.mark.timeout(600)
def test_a_cluster_of_its_own_whose_workers_cannot_start(start: Start) -> None:
    pytest.importorskip("ray")
    order = ("--workers", 1, "--insecure", "--listen", "127.0.0.1:0", "--", "--image-cache", 10**15)
    up = start("cluster", "up", *order)
    up.address()
    ran = up.finish()
    assert ran.code == 4
    assert "no worker of the cluster starts: it did not start: " in ran.err.splitlines()[-1]
    assert f"--image-cache {10**15} is over" in ran.err


@pytest.mark.threat("ray")
@pytest.mark.timeout(600)
def test_a_cluster_of_its_own_listens_on_loopback_alone(start: Start, run: Run, tmp_path: Path) -> None:
    """Ray's processes, the directory, the workers and those after them: from outside nobody reaches any of them."""
    pytest.importorskip("ray")
    loopback, settings = "127.0.0.1:0", tmp_path / "cluster.toml"
    settings.write_text("workers = 1\n")
    up = start("cluster", "up", "--config", settings, "--insecure", "--listen", loopback, "--metrics", loopback)
    directory, discovery = up.address(), up.line().split()[-1]
    (first,) = wait_for(directory, lambda found: len(found) == 1)
    replaced = worker_at(first)
    assert run("cluster", "restart", directory, "--rolling").out == "workers replaced: 1\n"
    assert psutil.wait_procs([replaced], timeout=SECONDS)[1] == []
    (second,) = wait_for(directory, lambda found: len(found) == 1)
    assert second != first
    with urlopen(f"http://{discovery}/") as response:
        (told,) = json.load(response)
    assert told["labels"]["__meta_cutline_address"] == second
    with urlopen(f"http://{told['targets'][0]}/metrics") as response:
        assert b"cutline_slots " in response.read()
    (driver,) = (one for one in psutil.Process().children() if {"cluster", "up"} <= set(one.cmdline()))
    tree = [driver, *driver.children(recursive=True)]
    listens = {
        (one.name(), open_socket.laddr.ip)
        for one in tree
        for open_socket in one.net_connections("inet")
        if open_socket.status == "LISTEN"
    }
    assert {"gcs_server", "raylet"} <= {name for name, _ in listens}
    assert {ip.removeprefix("::ffff:") for _, ip in listens} == {"127.0.0.1"}, listens
    for text, words in (
        ("workers = 1\nmax-workers = 3\nthreads = 2\n", "max-workers is 3; threads changed and needs a restart"),
        ("workers = 0\n", "settings stay as they are: --workers must be 1 or more"),
    ):
        settings.write_text(text)
        up.signal(signal.SIGHUP)
        while "settings" not in (line := up.told()):
            assert line, "it ended"
        assert words in line
    up.signal(signal.SIGTERM)
    assert up.finish().code == 0


async def asked_while(directory: str, address: str, change: Callable[[], None]) -> int:
    """Tokens of a session that is open at a worker when there is a `change` after which the worker is to leave."""
    bundle = Bundle.open(TARGET)
    prompt = PromptBuilder.open(bundle).build([Message("user", (TextPart("Read the digits."),))], []).ids
    opening = Open(
        model=bundle.manifest.identity, tokens=prompt, prompt_length=len(prompt), max_tokens=6, images=0, effort=0.0
    )
    tokens = list[int]()
    async with WorkerClient(address) as client, client.session(opening, (), timeout=SECONDS) as session:
        async for event in session.events():
            if isinstance(event, Confirmed):
                if not tokens:
                    change()
                    await asyncio.to_thread(wait_for, directory, lambda found: not found)
                tokens += event.tokens
                await session.offer(Draft(len(prompt) + len(tokens) - 1, (tokens[-1], 0)))
    assert session.finished is not None
    return len(tokens)


@pytest.mark.proof
@pytest.mark.timeout(600)
def test_a_cluster_whose_ray_lost_its_controller_ends_in_order_to_be_started_again(start: Start) -> None:
    pytest.importorskip("ray")
    options = ("--workers", 1, "--insecure", "--listen", "127.0.0.1:0", "--drain", 60)
    up = start("cluster", "up", *options)
    directory = up.address()
    (address,) = wait_for(directory, lambda found: len(found) == 1)
    (driver,) = (one for one in psutil.Process().children() if {"cluster", "up"} <= set(one.cmdline()))
    tree = driver.children(recursive=True)
    (controller,) = (one for one in tree if one.name() == "gcs_server")
    assert asyncio.run(asked_while(directory, address, controller.kill)) > 1, "what was open is answered to its end"
    # Ray's own agents notice that they are alone within a minute, its workers and ours at once.
    assert psutil.wait_procs(tree, timeout=SECONDS)[1] == []
    ran = up.finish()
    assert ran.code == 4, ran.err
    assert "Traceback" not in ran.err
    assert ran.err.splitlines()[-1].startswith("cutline: Ray's controller at ")
    assert "start the cluster again" in ran.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give --tls-cert, --tls-key, and --tokens or --client-ca, or --insecure"),
        (["--listen", "192.0.2.1:0"], "give --tls-cert, --tls-key, and --tokens or --client-ca"),
        (["--listen", "0.0.0.0:0", "--tls-cert", "c", "--tls-key", "k", "--tokens", "t"], "no such place"),
        (["--insecure", "--max-workers", "0"], "--max-workers"),
        (["--listen", "0.0.0.0:0", "--insecure"], "own addresses"),
        (["--insecure", "--workers", "3", "--max-workers", "2"], "--max-workers"),
        (["--insecure", "--threads", "0"], "--threads"),
        (["--insecure", "--", "--listen", "0.0.0.0:1"], "before the --"),
        (["--insecure", "--", "--bundle=x"], "before the --"),
        (["--insecure", "--address", "auto"], "RAY_AUTH_MODE=token"),
        (["--insecure", "--", "--metrics", "127.0.0.1:1"], "before the --"),
        (["--insecure", "--metrics", "0.0.0.0:0"], "could be read from outside"),
        (["--tls-cert", "x"], "--tls-key"),
        (["--insecure", "--", "--layers"], "--layers"),
        (["--insecure", "--", "--layers", "decoder.9:"], "--layers decoder.9: is not START:END"),
        (["--insecure", "--", "--layers", "image:decoder.1"], "give --next"),
        (["--insecure", "--", "--wires", "fp8"], "--wires fp8"),
        (["--insecure", "--", "--dtype", "fp8"], "--dtype"),
        (["--insecure", "--", "--device", "abacus"], "--device abacus"),
        (["--insecure", "--", "--max-sessions", "many"], "'--max-sessions'"),
        (["--insecure", "--", "--nonsense"], "--nonsense"),
    ],
)
def test_what_cannot_be_a_cluster(run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    assert told in run("cluster", "up", *arguments).failed(2)


def test_a_bundle_that_is_not_there_is_no_cluster_of_this_machine(run: Run, tmp_path: Path) -> None:
    told = run("cluster", "up", "--insecure", "--bundle", tmp_path / "none").failed(BundleError.exit_code)
    assert str(tmp_path / "none") in told


@pytest.mark.threat("ray")
def test_a_ray_that_runs_is_used_with_a_token_only(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED", "RAY_worker_niceness", LOOPBACK, PATIENCE)
    for name in names:
        monkeypatch.setenv(name, "")
    with pytest.raises(InputError, match="obey everybody"):
        prepare("ray://192.0.2.1:10001")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(InputError, match="obey everybody"):
        prepare("auto")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    prepare("auto")
    prepare(None)
    tokens = {os.environ["RAY_AUTH_TOKEN"]}
    prepare(None)
    tokens.add(os.environ["RAY_AUTH_TOKEN"])
    assert len(tokens) == 2
    assert all(len(token) == 64 for token in tokens)


def test_files_are_found_by_who_works_elsewhere(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The order as it would go to Ray's actors; a link stays one, for a certificate is renewed by it."""
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    raying = importlib.import_module("cutline.cloud.cluster.ray_backend")
    monkeypatch.chdir(tmp_path)
    assert run("keys", "init", ".", "--device", "c").code == 0
    assert run("keys", "token", "tokens.toml", "warehouse", "--out", "token").code == 0
    (tmp_path / "s.crt").symlink_to("server.crt")
    orders = list[Any]()

    def take(order: Any) -> None:
        orders.append(order)
        raise InputError("enough")

    monkeypatch.setattr(raying, "connected", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(raying, "Cluster", take)
    own = (
        *("--tls-cert", "s.crt", "--tls-key", "server.key", "--client-ca", "ca.crt"),
        *("--revoked", "revoked.toml", "--tokens", "tokens.toml"),
    )
    agent = ("--ca", "ca.crt", "--cert", "c.crt", "--key", "c.key", "--token-file", "token", "--bundle", "b")
    given = ("--next", "192.0.2.1:1", "--ca", "ca.crt", "--key=c.key", "--audit=/var/a", "--context", "99")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        told = run("cluster", "up", "--address", "auto", *own, *agent, "--", *given).failed(2)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert "enough" in told
    (order,) = orders
    here = tmp_path
    assert order.server_keys == ServerKeys(
        certificate=here / "s.crt", key=here / "server.key", client_ca=here / "ca.crt", revoked=here / "revoked.toml"
    )
    assert order.tokens == here / "tokens.toml"
    assert order.keys == AgentKeys(
        ca=here / "ca.crt", certificate=here / "c.crt", key=here / "c.key", token_file=here / "token"
    )
    assert order.options == (
        *("--bundle", str(here / "b"), "--drain", "30.0", "--next", "192.0.2.1:1"),
        *("--ca", str(here / "ca.crt"), f"--key={here / 'c.key'}", "--audit=/var/a", "--context", "99"),
    )


def test_every_option_of_a_worker_that_names_a_file_is_known() -> None:
    paths = {name for name, kind in get_type_hints(cloud).items() if kind == Path | None}
    assert {"--" + name.replace("_", "-") for name in paths} == {*_FILES, "--bundle"}


@pytest.mark.parametrize("why", ["cannot read [/etc/x]", "it says [red]boo", "\x1b[2Jgone"])
def test_a_table_shows_what_workers_say_as_it_is(why: str) -> None:
    one = ListedWorker(name="[w]", address="127.0.0.1:1", standing=Standing.RESTING, since=0.0, why=why)
    console = Console(width=200, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(_table("[::1]:1", Listing(epoch="e", version=1, wanted=1, workers=(one,))))
    shown = capture.get()
    for text in ("[w]", "[::1]:1", why.replace("\x1b", "\\x1b")):
        assert text in shown
    assert "\x1b[2J" not in shown


def test_rays_controller_is_waited_for_and_then_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    head = importlib.import_module("cutline.cloud.cluster.ray_backend").Head
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        gone = head(address, patience=0.0)
        gone.check()
    head(address, patience=3600.0).check()
    with pytest.raises(WorkerUnavailable, match=f"controller at {address} is gone .*; start the cluster again"):
        gone.check()


def test_a_restart_that_cannot_be(run: Run, worker: str) -> None:
    assert "give --rolling" in run("cluster", "restart", "127.0.0.1:1").failed(2)
    assert "no directory answers" in run("cluster", "restart", "127.0.0.1:1", "--rolling").failed(4)
    assert "is no directory" in run("cluster", "restart", worker, "--rolling").failed(7)


def test_status_of_what_is_no_directory(run: Run, worker: str) -> None:
    assert "is no directory" in run("cluster", "status", worker).failed(7)
    assert "no directory answers" in run("cluster", "status", "127.0.0.1:1").failed(4)
    run("cluster", "status", "here").failed(2)


def test_health(run: Run, worker: str) -> None:
    assert run("health", worker).out == "serving\n"
    assert "no worker answers" in run("health", "127.0.0.1:1").failed(4)
    run("health", "here").failed(2)
