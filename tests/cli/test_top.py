"""A worker's metrics from the command line: `cutline cloud --metrics` and `cutline top`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cutline.cli.access.certificates import DEVICE, SERVER, Authority, pair_of
from cutline.cloud.telemetry.metrics import WorkerMetrics, show
from cutline.protos.channel.credentials import ServerKeys

Run = Callable[..., Any]
Start = Callable[..., Any]
FREE = "127.0.0.1:0"


def test_top_shows_what_a_worker_did(run: Run, start: Start, card: Path) -> None:
    worker = start("cloud", "--insecure", "--listen", FREE, "--metrics", FREE, "--threads", "1", "--dtype", "fp32")
    address = worker.address()
    metrics = worker.line().split()[-1]
    answer = json.loads(run("ask", card, "Describe the card.", "--mode", "cloud", "--worker", address, "--json").out)
    ran = run("top", metrics, "--once", "--json")
    assert (ran.code, ran.err) == (0, "")
    told = json.loads(ran.out)
    assert sum(told["tokens"].values()) == len(answer["tokens"])
    assert told["tokens"]["cloud"] > 0
    assert told["ended"] == {"OK": 1}
    assert told["slots_in_use"] == 0
    assert told["slots"] >= 1
    assert (told["bytes_up"], told["bytes_down"]) == (answer["bytes_up"], answer["bytes_down"])
    shown = run("top", metrics, "--once")
    assert shown.code == 0
    for words in ("sessions", f"of {told['slots']} slots", "acceptance", "1 OK"):
        assert words in shown.out

    live = start("top", metrics, "--json", "--interval", "0.05")
    lines = [json.loads(live.line()) for _ in range(3)]
    assert lines[0]["tokens_a_second"] is None
    assert lines[2]["tokens_a_second"] == 0.0  # nothing happened meanwhile
    assert lines[2]["passes"] == told["passes"]


def test_top_reads_https(run: Run, tmp_path: Path) -> None:
    authority = Authority.make(tmp_path / "keys")
    server, reader = authority.sign("server", SERVER, hosts=["127.0.0.1"]), authority.sign("reader", DEVICE)
    authority.write()
    ca = pair_of(authority.folder, "ca").certificate
    keys = ServerKeys(certificate=server.certificate, key=server.key, client_ca=ca)
    with show(WorkerMetrics(), "0.0.0.0:0", keys) as address:
        asked = ("top", f"127.0.0.1:{address.rpartition(':')[2]}", "--once", "--json")
        told = run(*asked, "--ca", ca, "--cert", reader.certificate, "--key", reader.key)
        assert (told.code, told.err) == (0, "")
        assert json.loads(told.out)["slots"] == 0
        for less in ((), ("--ca", ca)):
            assert "--ca, --cert and --key" in run(*asked, *less).failed(4)
        run(*asked, "--cert", reader.certificate, "--key", reader.key).failed(2)


def test_top_where_nobody_shows_metrics(run: Run, worker: str) -> None:
    assert run("top", "127.0.0.1:9", "--once").code == 4
    ran = run("top", worker, "--once")  # which speaks another protocol
    assert ran.code == 4
    assert "--metrics" in ran.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("top", "here", "--once"),
        ("top", "127.0.0.1:9", "--interval", "0"),
        ("cloud", "--insecure", "--metrics", "here"),
        ("cloud", "--insecure", "--metrics", "0.0.0.0:0"),
        ("cloud", "--insecure", "--dtype", "fp8"),
        ("cloud", "--insecure", "--context", "100", "--max-sessions", "1000000000"),
    ],
)
def test_what_cannot_be_is_one_line(run: Run, arguments: tuple[str, ...]) -> None:
    if "--max-sessions" in arguments:
        arguments = (*arguments, "--listen", FREE)
    ran = run(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("cutline: ")
    assert len([line for line in ran.err.splitlines() if line.startswith("cutline: ")]) == 1


def test_metrics_where_someone_listens_already(run: Run, worker: str) -> None:
    ran = run("cloud", "--insecure", "--listen", FREE, "--metrics", worker)
    assert ran.code == 2
    assert "cannot show metrics" in ran.err
