"""A worker's metrics on this machine's own address answer to this machine's names alone."""

from __future__ import annotations

import http.client

import pytest

from cutline.cloud.telemetry.metrics import WorkerMetrics, show


@pytest.mark.threat("doors")
@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:9", 200),
        ("[::1]:9", 200),
        ("evil.example", 421),
        ("evil.example:80", 421),
        ("", 421),
    ],
)
def test_a_page_that_misled_a_browser_reads_no_metrics(host: str, status: int) -> None:
    with show(WorkerMetrics(), "127.0.0.1:0") as address:
        connection = http.client.HTTPConnection(address, timeout=30)
        connection.request("GET", "/metrics", headers={"Host": host})
        answer = connection.getresponse()
        said = answer.read()
        connection.close()
    assert answer.status == status
    assert (b"cutline_slots" in said) == (status == 200)
