"""Metrics over HTTP, against what the sessions themselves were told, and how they are read back."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cutline.cli.access.certificates import DEVICE, SERVER, Authority, pair_of
from cutline.cloud.serving.server import WorkerOptions, serve
from cutline.cloud.telemetry import metrics as metrics_module
from cutline.cloud.telemetry.metrics import WorkerMetrics, show
from cutline.cloud.telemetry.scrape import figures, read_counts
from cutline.cloud.telemetry.session_stats import Account
from cutline.errors import InputError, ModelMismatch, WorkerBusy, WorkerFailed, WorkerUnavailable
from cutline.models.bundle import Bundle
from cutline.protos.channel.credentials import AgentKeys, ServerKeys, client_context
from cutline.protos.client import WorkerClient
from cutline.protos.codec import agent_to_wire
from cutline.protos.messages import Cancel, Confirmed, Open, Opened
from cutline.protos.version import package_version

Case = tuple[Open, bytes, tuple[int, ...]]


def test_what_is_counted_is_what_sessions_were_told(bundle: Bundle, asking: Any, cases: list[Case]) -> None:
    metrics = WorkerMetrics()

    async def main() -> tuple[list[Any], list[Any], str, str]:
        async with (
            asyncio.timeout(60),
            serve(bundle, WorkerOptions(slots=4, context=256), observer=metrics) as address,
            WorkerClient(address) as client,
        ):
            with show(metrics, "127.0.0.1:0") as shown:
                first = asking(cases[0], "image", believed=cases[0][2], ahead=4, effort=0.0)
                open_session = client.session(first.opening, first.upload(), timeout=30)
                async with open_session as session:
                    await first.follow(session, stop=1)
                    during = await asyncio.to_thread(lambda: httpx.get(f"http://{shown}/metrics").text)
                    for draft in first.drafts():
                        await session.offer(draft)
                    await first.follow(session)
                    ends = [session.finished]
                asked = [first]
                for case in cases[1:3]:
                    one = asking(case, "image", draft=case[2])
                    ends.append(await one.ask(client))
                    asked.append(one)
                with pytest.raises(ModelMismatch):
                    await asking((replace(cases[0][0], model="other"), *cases[0][1:]), "image").ask(client)
                after = await asyncio.to_thread(lambda: httpx.get(f"http://{shown}/metrics").text)
        return asked, ends, during, after

    asked, ends, during, after = asyncio.run(main())
    midway, counts = figures(read_counts(during)), read_counts(after)
    assert (midway.slots, midway.slots_in_use, midway.sessions_open) == (4, 1, 1)
    found = figures(counts)
    assert (found.slots_in_use, found.sessions_open) == (0, 0)
    confirmed = [event for one in asked for event in one.events if isinstance(event, Confirmed)]
    accepted = sum(event.accepted for event in confirmed)
    assert found.tokens == {"draft": accepted, "cloud": sum(len(one.tokens) for one in asked) - accepted}
    assert accepted > 0
    assert found.ended == {"FAILED_PRECONDITION": 1, "OK": 3}
    assert found.passes == sum(end.passes for end in ends)
    assert counts["cutline_drafted_total", ""] == sum(end.verified for end in ends)
    assert found.acceptance == 1.0
    assert found.bytes_up > sum(len(agent_to_wire(part).SerializeToString()) for one in asked for part in one.upload())
    assert counts["cutline_queue_seconds_count", ""] == 3
    assert counts["cutline_pass_rows_sum", ""] == sum(
        len(one.opening.tokens) + end.passes - 1 + end.verified for one, end in zip(asked, ends, strict=True)
    )


def test_sessions_that_agents_leave_are_counted_among_those_that_ended(bundle: Bundle, asking: Any, case: Case) -> None:
    """Cancelled, dropped within the answer or before it; each once, whatever it was told."""
    metrics = WorkerMetrics()

    def count(status: str) -> float:
        return metrics.registry.get_sample_value("cutline_sessions_ended_total", {"status": status}) or 0.0

    async def main() -> None:
        worker = serve(bundle, WorkerOptions(slots=2, context=256), observer=metrics)
        async with asyncio.timeout(60), worker as address, WorkerClient(address) as client:
            await asking(case, "image").ask(client, stop=2)
            asked = asking(case, "image", effort=0.0)
            async with client.session(asked.opening, asked.upload(), timeout=30) as session:
                await asked.follow(session, stop=1)
                await session._send(Cancel())
                with pytest.raises(WorkerUnavailable):
                    await asked.follow(session)
            async with client.session(asked.opening, (), timeout=30):
                pass
            await asking(case, "image").ask(client)

    asyncio.run(main())  # at its end all have ended
    assert count("CANCELLED") in (2.0, 3.0)  # gRPC may take a call back before the worker hears of it
    assert count("OK") == 1.0


def test_two_readings_give_rates_and_means_of_the_time_between() -> None:
    metrics = WorkerMetrics()
    metrics.serving(8, lambda: 3)
    text = []
    with show(metrics, "127.0.0.1:0") as address:
        metrics.passed(10, 0.5)
        metrics.told(Confirmed(0, (1, 2, 3), 2))
        text.append(httpx.get(f"http://{address}/metrics").text)
        metrics.passed(2, 0.25)
        metrics.verified(4, 1)
        metrics.told(Confirmed(3, (1, 2), 0))
        metrics.carried(up=600, down=30)
        text.append(httpx.get(f"http://{address}/metrics").text)
        with pytest.raises(InputError, match="cannot show metrics"), show(metrics, address):
            pass
    first, second = (read_counts(one) for one in text)
    found = figures(second, first, seconds=2.0)
    assert (found.rows_a_pass, found.pass_seconds, found.acceptance) == (2.0, 0.25, 0.25)
    assert (found.tokens_a_second, found.bytes_up_a_second, found.bytes_down_a_second) == (1.0, 300.0, 15.0)
    assert found.tokens == {"draft": 2, "cloud": 3}
    assert (found.slots, found.slots_in_use, found.queue_seconds) == (8, 3, None)
    # A worker that was started anew counts from nothing.
    assert figures(first, second, seconds=2.0) == figures(first)


@pytest.mark.threat("floods")
def test_silent_connections_keep_nobody_from_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor the worker from its end; those that are too many are shut at once, and the others in time."""
    authority = Authority.make(tmp_path / "keys")
    server, reader = authority.sign("server", SERVER, hosts=["127.0.0.1"]), authority.sign("reader", DEVICE)
    authority.write()
    ca = pair_of(authority.folder, "ca").certificate
    known = client_context(AgentKeys(ca=ca, certificate=reader.certificate, key=reader.key))
    stranger = client_context(AgentKeys(ca=ca))
    keys = ServerKeys(certificate=server.certificate, key=server.key, client_ca=ca)
    monkeypatch.setattr(metrics_module, "MAX_CONNECTIONS", 2)
    with show(WorkerMetrics(), "0.0.0.0:0", keys) as address:
        at = ("127.0.0.1", int(address.rpartition(":")[2]))
        url = f"https://127.0.0.1:{at[1]}/metrics"
        with socket.create_connection(at, 5):
            assert "cutline_slots" in httpx.get(url, verify=known, timeout=5).text
            with pytest.raises(httpx.HTTPError):
                httpx.get(url, verify=stranger, timeout=5)
            # The stranger's place may be given back after it was told, so that either of two can be the one too many.
            with socket.create_connection(at, 5) as second, socket.create_connection(at, 5) as third:
                shut, _, _ = select.select([second, third], [], [], 5)
                assert shut
                assert shut[0].recv(1) == b""
    monkeypatch.setattr(metrics_module, "CONNECTION_SECONDS", 0.1)
    with show(WorkerMetrics(), "0.0.0.0:0", keys) as address:
        at = ("127.0.0.1", int(address.rpartition(":")[2]))
        with socket.create_connection(at, 5) as silent:
            assert silent.recv(1) == b""


@pytest.mark.parametrize("text", ["", "<html>hello</html>", "other_metric 1\n", "cutline_slots{ 1"])
def test_what_is_no_workers_metrics_is_said_to_be_none(text: str) -> None:
    with pytest.raises(WorkerFailed, match="no metrics of a worker"):
        read_counts(text)


def test_what_runs_there_and_how_it_is() -> None:
    metrics = WorkerMetrics()
    metrics.divided((os.getpid(), os.getpid()))
    before = time.time()
    metrics.passed(1, 0.1)
    with show(metrics, "127.0.0.1:0") as shown:
        text = httpx.get(f"http://{shown}/metrics").text
    told = {
        (one.name, *one.labels.values()): one for two in text_string_to_metric_families(text) for one in two.samples
    }
    assert package_version() in next(key for key in told if key[0] == "cutline_build_info")
    assert before <= told[("cutline_last_pass_timestamp_seconds",)].value <= time.time()
    resident = psutil.Process().memory_info().rss
    for name in ("process_resident_memory_bytes",), ("cutline_rank_resident_bytes", "1"):
        assert resident / 2 < told[name].value < 2 * resident
    assert told[("cutline_rank_up", "0")].value == 1.0
    assert told[("cutline_rank_cpu_seconds_total", "0")].value > 0.0
    assert told[("cutline_hung",)].value == 0.0


def test_a_rank_that_is_stopped_or_gone_is_not_up() -> None:
    def up() -> float | None:
        return metrics.registry.get_sample_value("cutline_rank_up", {"rank": "1"})

    metrics = WorkerMetrics()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        metrics.divided((os.getpid(), other.pid))
        assert up() == 1.0
        other.send_signal(signal.SIGSTOP)
        os.waitpid(other.pid, os.WUNTRACED)
        assert up() == 0.0
        other.kill()
    assert up() == 0.0


def test_refusals_are_counted_by_tenant_and_those_of_many_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "MAX_TENANTS", 2)
    metrics = WorkerMetrics()
    for tenant in ("a", "b", "c", "d", "a"):
        account = Account(tenant)
        account.failed(WorkerBusy("full"))
        metrics.ended(account)
    served = Account("a")
    served.told(Opened("s"))
    served.failed(WorkerFailed("it broke later"))
    metrics.ended(served)
    metrics.ended(Account("b"))  # it left by itself
    counted = {
        one.labels["tenant"]: one.value
        for family in metrics.registry.collect()
        for one in family.samples
        if one.name == "cutline_sessions_refused_total"
    }
    assert counted == {"a": 2.0, "b": 1.0, "other": 2.0}
