"""Audits that wait in a folder: over a restart, sealed, torn, without their key, on a disk that fails."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutline.cloud.serving.server import WorkerOptions, serve
from cutline.core.agreement.measures import Wording
from cutline.core.request import Mode, Priority, Request
from cutline.core.storage.envelope import SealingKey
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.edge.agent import Agent, AgentSettings
from cutline.edge.audit.auditor import WAITING, WAITING_SECONDS, Auditor
from cutline.edge.audit.audits import Audits
from cutline.edge.audit.spool import AuditSpool, DueAudit, DueHead, new_name
from cutline.edge.generation.conditions import PLAIN
from cutline.edge.generation.result import Answer, Decision, Gated
from cutline.errors import InputError, ModelMismatch, WorkerUnavailable
from cutline.models.bundle import Bundle
from cutline.testing.worker import gated, keeps_from

KEY, OTHER = SealingKey("0f" * 32), SealingKey("f0" * 32)
GATE, NAME = keeps_from(0.0), "a gate"
PICTURE = b"the bytes of a picture" * 40
REQUEST = Request.about(PICTURE, "what is it", mode=Mode.AUTO)
BOUNDED = msgspec.structs.replace(REQUEST, image_must_stay=True, max_latency_ms=20.0)


def due(*, of: str = NAME, age: float = 0.0, confidence: float = 0.9) -> DueAudit:
    head = DueHead(time=time.time() - age, of=of, group=PLAIN, confidence=confidence)
    return DueAudit(head=head, request=REQUEST, wording=Wording("a card", (1,)))


def kept(request: Request) -> Answer:
    gate = Gated(group=PLAIN, calibrated=True, decision=Decision.KEPT, promised=0.05)
    return msgspec.structs.replace(said("a card"), gate=gate, request_id=request.text, mode=request.mode)


def said(text: str, *, exact: bool = True) -> Answer:
    return msgspec.convert(
        {
            "text": text,
            "tokens": [{"id": 1, "text": text, "source": "cloud"}],
            "mode": "cloud",
            **dict.fromkeys(("latency_ms", "ttft_ms"), 0.0),
            **dict.fromkeys(("bytes_up", "bytes_down", "rounds", "drafted", "accepted"), 0),
            **dict.fromkeys(("worker", "cut", "wire", "confidence")),
            "exact": exact,
            "complete": True,
        },
        Answer,
    )


def stored(folder: Path, *audits: DueAudit, key: SealingKey | None = None) -> list[Path]:
    spool = AuditSpool(folder, key=key)
    for audit in audits:
        spool.put(new_name(audit.head.time), audit)
    spool.close()
    return sorted(folder.glob("*.audit"))


Ask = Callable[[Request], Awaitable[Answer]]


async def agreeing(request: Request) -> Answer:
    return kept(request)


def audited(folder: Path | None, ask: Ask, *, key: SealingKey | None = None, planned: bool = False) -> Audits:
    """What audits have shown once all that waits in a folder, and one kept answer with bounds if so, is audited."""

    async def run() -> Audits:
        audits = Audits(share=1.0)
        spool = None if folder is None else AuditSpool(folder, key=key)
        auditor = Auditor(
            audits,
            lambda: (GATE, NAME),
            ask=ask,
            idle=lambda: True,
            sleep=lambda _: asyncio.sleep(0),
            spool=spool,
            planned=planned,
        )
        async with auditor, asyncio.timeout(30):
            if folder is None:
                auditor.take(BOUNDED, kept(BOUNDED))
            while auditor.waiting:  # noqa: ASYNC110 (nobody else waits)
                await asyncio.sleep(0)
        return audits

    return asyncio.run(run())


def counts(audits: Audits) -> tuple[int, int, int]:
    shown = audits.every(GATE).get(PLAIN)
    return (0, 0, 0) if shown is None else (shown.audited, shown.disagreed, shown.unsent)


@pytest.mark.parametrize("key", [None, KEY])
def test_what_was_kept_without_a_link_is_audited_after_a_restart(tmp_path: Path, key: SealingKey | None) -> None:
    drafter, folder = gated(Bundle.open(DRAFTER), keeps_from(0.0)), tmp_path / "spool"
    png = (Path(str(DRAFTER)).parent.parent / "examples" / "card1.png").read_bytes()

    def agent(worker: str) -> Agent:
        how = AgentSettings(audit=1.0, audit_records=tmp_path / "audits", audit_spool=AuditSpool(folder, key=key))
        return Agent(drafter, worker=worker, threads=1, settings=how)

    async def run() -> None:
        async with agent("127.0.0.1:1") as offline:
            for text in ("What numbers do you see?", "Count the digits."):
                answer = await offline.answer(Request.about(png, text, mode=Mode.AUTO))
                assert answer.gate is not None
                assert answer.gate.decision is Decision.KEPT
        files = list(folder.glob("*.audit"))
        assert len(files) == 2
        for file in files:
            assert file.stat().st_mode & 0o077 == 0
            assert (png in file.read_bytes()) == (key is None)
        async with serve(Bundle.open(TARGET), WorkerOptions(slots=2)) as address, agent(address) as online:
            async with asyncio.timeout(60):
                while online.audits_waiting:  # noqa: ASYNC110 (nobody else waits)
                    await asyncio.sleep(0.05)
            (shown,) = online.state().audits.values()
            assert shown.audited == 2
        assert not list(folder.glob("*.audit"))

    asyncio.run(run())


@pytest.mark.parametrize("key", [None, KEY])
@pytest.mark.parametrize("harm", [lambda raw: raw[:-9], lambda raw: raw[:-1] + bytes([raw[-1] ^ 1])])
def test_a_torn_audit_counts_as_an_answer_that_differs(
    tmp_path: Path, key: SealingKey | None, harm: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    _, torn = stored(tmp_path, due(), due(), key=key)
    torn.write_bytes(harm(torn.read_bytes()))
    assert counts(audited(tmp_path, agreeing, key=key)) == (2, 1, 0)
    assert caplog.text.count("an audit is lost") == 1
    assert not list(tmp_path.glob("*.audit"))


def test_one_whose_head_is_torn_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole, torn = stored(tmp_path, due(), due())
    torn.write_bytes(b"\0" * 50)
    assert counts(audited(tmp_path, agreeing)) == (1, 0, 0)
    assert "nothing tells of which answer" in caplog.text
    assert not torn.exists()
    assert not whole.exists()


def test_a_head_that_was_changed_is_not_believed(tmp_path: Path) -> None:
    (file,) = stored(tmp_path, due(confidence=0.5), key=KEY)
    file.write_bytes(file.read_bytes().replace(b'"confidence":0.5', b'"confidence":0.9', 1))
    assert counts(audited(tmp_path, agreeing, key=KEY)) == (1, 1, 0)


@pytest.mark.parametrize("wrong", [None, OTHER])
def test_without_their_key_audits_wait_and_one_line_says_so(
    tmp_path: Path, wrong: SealingKey | None, caplog: pytest.LogCaptureFixture
) -> None:
    stored(tmp_path, due(), due(), key=KEY)
    assert counts(audited(tmp_path, agreeing, key=wrong)) == (0, 0, 0)
    assert caplog.text.count("--audit-key-file") == 1
    assert "2 audits in" in caplog.text
    assert counts(audited(tmp_path, agreeing, key=KEY)) == (2, 0, 0)


def test_what_is_too_old_is_lost_and_what_is_of_another_gate_says_nothing(tmp_path: Path) -> None:
    stored(tmp_path, due(age=WAITING_SECONDS + 60), due(of="another"), due(), key=KEY)
    assert counts(audited(tmp_path, agreeing, key=OTHER)) == (1, 1, 0), "the old one needs no key"
    assert counts(audited(tmp_path, agreeing, key=KEY)) == (1, 0, 0)
    assert not list(tmp_path.glob("*.audit"))


def test_a_disk_that_fails_is_told_of_once_and_audits_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "spool"
    spool = AuditSpool(folder)
    shutil.rmtree(folder)

    async def run() -> int:
        audits = Audits(share=1.0)
        auditor = Auditor(audits, lambda: (GATE, NAME), ask=agreeing, idle=lambda: True, spool=spool)
        async with asyncio.timeout(30):
            for number in range(3):
                auditor.take(REQUEST, msgspec.structs.replace(kept(REQUEST), request_id=str(number)))
            waiting = auditor.waiting
            await auditor.__aexit__()
        return waiting

    assert asyncio.run(run()) == 3
    assert caplog.text.count("no audit is kept for a next start") == 1


def test_one_process_uses_a_folder_and_it_is_one(tmp_path: Path) -> None:
    spool = AuditSpool(tmp_path / "spool")
    with pytest.raises(InputError, match="is in use by another process"):
        AuditSpool(tmp_path / "spool")
    spool.close()
    AuditSpool(tmp_path / "spool").close()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be used"):
        AuditSpool(tmp_path / "file")


def test_no_more_wait_than_so_many_and_the_oldest_are_lost() -> None:
    audits = Audits(share=1.0)
    auditor = Auditor(audits, lambda: (GATE, NAME), ask=agreeing, idle=lambda: True)
    for number in range(WAITING + 3):
        auditor.take(REQUEST, msgspec.structs.replace(kept(REQUEST), request_id=str(number)))
    assert auditor.waiting == WAITING
    assert counts(audits)[:2] == (3, 3)


def test_an_audit_whose_worker_has_another_model_waits_and_names_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored(tmp_path, due(), due())
    asked = list[Request]()

    async def ask(request: Request) -> Answer:
        asked.append(request)
        if len(asked) < 20:
            raise ModelMismatch("worker.example:50051 serves SmolVLM-2.2B, and the agent was made for another")
        return kept(request)

    assert counts(audited(tmp_path, ask)) == (2, 0, 0), "it is no answer that differs, however often it was asked"
    assert caplog.text.count("worker.example:50051 serves SmolVLM-2.2B") == 1


def test_an_answer_with_bounds_is_audited_within_them_or_counted_apart() -> None:
    asked = list[Request]()

    async def ask(request: Request) -> Answer:
        asked.append(request)
        return kept(request)

    assert counts(audited(None, ask)) == (0, 0, 1), "nothing plans, so nothing keeps to its bounds"
    assert not asked
    assert counts(audited(None, ask, planned=True)) == (1, 0, 0)
    (request,) = asked
    assert (request.image_must_stay, request.exact, request.mode) == (True, True, Mode.AUTO)
    assert (request.max_latency_ms, request.priority) == (None, Priority.BACKGROUND)

    async def refuses(request: Request) -> Answer:
        raise InputError("no plan keeps to image-must-stay")

    assert counts(audited(None, refuses, planned=True)) == (0, 0, 1)


def test_one_that_is_lost_while_it_is_asked_counts_once() -> None:
    async def run() -> tuple[int, int, int]:
        audits, full = Audits(share=1.0), asyncio.Event()

        async def ask(request: Request) -> Answer:
            if not full.is_set():
                for number in range(WAITING):
                    auditor.take(REQUEST, msgspec.structs.replace(kept(REQUEST), request_id=str(number)))
                full.set()
                raise WorkerUnavailable("away")
            return kept(request)

        auditor = Auditor(audits, lambda: (GATE, NAME), ask=ask, idle=lambda: True, sleep=lambda _: asyncio.sleep(0))
        async with auditor, asyncio.timeout(60):
            auditor.take(REQUEST, kept(REQUEST))
            while auditor.waiting:  # noqa: ASYNC110 (nobody else waits)
                await asyncio.sleep(0)
        return counts(audits)

    assert asyncio.run(run()) == (WAITING + 1, 1, 0)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=20), st.sampled_from([None, KEY]))
@settings(max_examples=15, deadline=None)
def test_a_spool_has_what_was_put_and_not_removed(steps: list[tuple[bool, int]], key: SealingKey | None) -> None:
    with TemporaryDirectory() as folder:
        names, model = [new_name(1e9 + place) for place in range(6)], dict[str, DueAudit]()
        spool = AuditSpool(Path(folder), key=key)
        for puts, place in steps:
            if puts:
                model[names[place]] = due(confidence=place / 10)
                spool.put(names[place], model[names[place]])
            else:
                model.pop(names[place], None)
                spool.remove(names[place])
        spool.close()
        again = AuditSpool(Path(folder), key=key)
        found = {name: audit for name, _, audit in again.load(NAME, since=0.0)}
        again.close()
        assert found == model
        assert list(found) == sorted(found)
