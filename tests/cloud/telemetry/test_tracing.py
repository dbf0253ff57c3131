"""What is told of a session when it has ended: a log line, an audit line, a span; never what was said in it."""

from __future__ import annotations

import ast
import asyncio
import json
import logging
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from cutline.cli.terminal.logs import JsonLines, TextLines
from cutline.cloud.access.audit import Audit
from cutline.cloud.serving.server import WorkerOptions, serve
from cutline.cloud.telemetry.observer import Observers
from cutline.cloud.telemetry.request_log import SessionLog
from cutline.cloud.telemetry.session_stats import Account
from cutline.cloud.telemetry.tracing import Tracing
from cutline.errors import InputError, WorkerFailed
from cutline.models.bundle import Bundle
from cutline.protos.client import WorkerClient
from cutline.protos.messages import Open, image_chunks

Case = tuple[Open, bytes, tuple[int, ...]]

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_a_session_is_a_span_a_line_and_an_entry(bundle: Bundle, case: Case, caplog: pytest.LogCaptureFixture) -> None:
    opening, image, answer = case
    exporter = InMemorySpanExporter()
    tracing = Tracing(SimpleSpanProcessor(exporter))
    metadata = [("traceparent", f"00-{TRACE}-{SPAN}-01")]

    async def main() -> None:
        observer = Observers(SessionLog(), Audit(), tracing)
        async with (
            serve(bundle, WorkerOptions(slots=1, context=256), observer=observer) as address,
            WorkerClient(address) as client,
        ):
            named = replace(opening, request_id="req-7")
            async with client.session(named, list(image_chunks(image)), timeout=30, metadata=metadata) as session:
                async for _ in session.events():
                    pass
            with pytest.raises(InputError):
                async with client.session(
                    Open(model=opening.model, tokens=(9,), prompt_length=1, max_tokens=1, cut="x status=OK\n"),
                    [],
                    timeout=30,
                ) as session:
                    await anext(session.events())

    with caplog.at_level(logging.INFO, logger="cutline"):
        asyncio.run(main())
    tracing.close()

    told, refused = exporter.get_finished_spans()
    assert told.context is not None
    assert told.parent is not None
    assert (told.context.trace_id, told.parent.span_id) == (int(TRACE, 16), int(SPAN, 16))
    assert (told.name, told.kind) == ("cutline.session", SpanKind.SERVER)
    names = [event.name for event in told.events]
    assert names == ["uploaded", "prepared", "opened", "first token", "passes"]
    times = [told.start_time, *(event.timestamp for event in told.events), told.end_time]
    assert times == sorted(times, key=lambda moment: moment or 0)
    assert told.attributes is not None
    assert told.attributes["cutline.tokens"] == len(answer)
    assert refused.parent is None
    assert refused.attributes is not None
    assert refused.attributes["cutline.status"] == "INVALID_ARGUMENT"

    lines = [record for record in caplog.records if record.name == "cutline.cloud.telemetry.request_log"]
    fields = [vars(record)["fields"] for record in lines]
    assert [one["status"] for one in fields] == ["OK", "INVALID_ARGUMENT"]
    assert fields[0]["session"]
    assert [one["request"] for one in fields] == ["req-7", ""]
    assert told.attributes["cutline.request"] == "req-7"
    assert fields[1]["cut"] == ""  # what was not checked is not written down
    assert fields[0]["prompt_tokens"] == opening.prompt_length
    audited = [vars(record)["fields"] for record in caplog.records if record.name == "cutline.audit"]
    assert audited[0]["request"] == "req-7"
    assert [one["outcome"] for one in audited] == ["OK", "INVALID_ARGUMENT"]
    for record in lines:
        said = json.loads(JsonLines().format(record))
        assert said["event"] == "session"
        assert said["tenant"] == ""
        assert "\n" not in JsonLines().format(record)
        assert f"status={said['status']}" in TextLines("%(message)s").format(record)


@pytest.mark.parametrize("trace", ["", "00-zz", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 9000, "\0"])
def test_a_trace_that_is_none_begins_a_new_one(trace: str) -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing(SimpleSpanProcessor(exporter))
    account = Account("a", trace)
    account.failed(WorkerFailed("broke"))
    account.close()
    tracing.ended(account)
    tracing.close()
    (span,) = exporter.get_finished_spans()
    assert span.parent is None
    assert span.status.status_code is StatusCode.ERROR


def test_no_words_of_others_make_lines_or_fields_of_the_log() -> None:
    try:
        raise ValueError("two\n2026-01-01 INFO cutline.audit: served")
    except ValueError:
        record = logging.LogRecord("a", logging.INFO, "", 0, "said %s", ("\x1b[2J\nINFO b",), sys.exc_info())
    record.fields = {"cut": "x outcome=OK\nINFO", "long": "y" * 900_000, "status": "OK", "why": 'a "b"'}
    first, *traceback = TextLines("%(message)s").format(record).splitlines()
    assert first == "said \\x1b[2J\\nINFO b"
    assert all(line.startswith("  ") for line in traceback)
    assert len(traceback[-1]) < 1000
    record.exc_info = record.exc_text = None
    (line,) = TextLines("%(message)s").format(record).splitlines()
    assert shlex.split(line.partition("INFO b ")[2].replace("\\\\", "\\")) == [
        "cut=x outcome=OK\\nINFO",
        f"long={'y' * 200}...",
        "status=OK",
        'why=a "b"',
    ]


def test_json_lines_hold_whatever_is_logged() -> None:
    try:
        raise ValueError("two\nlines \ud800")
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, "", 0, 'said "%s"\n', ("this\x00",), sys.exc_info())
    line = JsonLines().format(record)
    assert "\n" not in line
    said = json.loads(line)
    assert said["event"] == 'said "this\x00"\n'
    assert "ValueError" in said["exception"]


def test_nobody_loads_opentelemetry_who_did_not_ask() -> None:
    """One module needs it, and that one is imported inside a function."""
    needed: dict[str, set[tuple[str, bool]]] = {}
    root = Path(__file__).parents[3]
    for room in ("cli", "cloud", "devices", "edge", "models", "protos"):
        for file in (root / room).rglob("*.py"):
            tree = ast.parse(file.read_text())
            for node in ast.walk(tree):
                names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                for name in names:
                    if name.startswith(("opentelemetry", "cutline.cloud.telemetry.tracing")):
                        needed.setdefault(str(file.relative_to(root)), set()).add(
                            (name.split(".")[0], node in tree.body)
                        )
    assert needed == {"cloud/telemetry/tracing.py": {("opentelemetry", True)}, "cli/cloud.py": {("cutline", False)}}
