"""The journal of escalations: what comes back, what makes room, what is torn, sealed or another's, and full disks."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import msgspec
import pytest

from cutline.core.conversation import Message, TextPart, VideoPart, question
from cutline.core.escalations import recorder
from cutline.core.escalations.escalation import Escalation, encode
from cutline.core.escalations.folder import (
    LEAST_BYTES,
    EscalationJournal,
    entries_in,
    files_in,
    folder_of,
    remove_tenant,
    tenant_of,
)
from cutline.core.escalations.recorder import EscalationRecorder
from cutline.core.sampling import Sampling
from cutline.core.storage.envelope import SealingKey
from cutline.errors import InputError

KEY, OTHER = SealingKey("0f" * 32), SealingKey("f0" * 32)
ENTRY = Escalation(
    time=1.5,
    tenant="camera1",
    target="ab",
    prompt=(1, 2, 3),
    tokens=(4, 5),
    images=(b"\x00picture",),
    sampling=Sampling(temperature=0.5, seed=3),
    drafter="cd",
    draft=(4, 6),
    likely=(((4, -0.1), (7, -2.5)), ((5, -0.25),)),
    messages=(
        Message("system", (TextPart("Be brief."),)),
        question("What?"),
        Message("user", (VideoPart((0.0,), 1.0),)),
    ),
    group="sampled",
)


def entry(number: int, tenant: str = "a", size: int = 400_000) -> Escalation:
    return msgspec.structs.replace(ENTRY, time=float(number), tenant=tenant, images=(bytes(size),))


@pytest.mark.parametrize("key", [None, KEY])
def test_an_entry_comes_back_as_it_was(tmp_path: Path, key: SealingKey | None) -> None:
    journal = EscalationJournal(tmp_path / "journal", limit=LEAST_BYTES, key=key)
    journal.put(ENTRY)
    journal.close()
    assert list(entries_in(tmp_path / "journal", key)) == [ENTRY]
    (file,) = files_in(tmp_path / "journal")
    assert file.tenant == "camera1"
    assert file.time == 1.5
    assert (b"\x00picture" in file.path.read_bytes()) == (key is None)
    assert file.path.stat().st_mode & 0o077 == 0


def test_the_oldest_make_room_also_for_the_next_process(tmp_path: Path) -> None:
    journal = EscalationJournal(tmp_path, limit=LEAST_BYTES)
    assert [journal.put(entry(number, "ab"[number % 2])) for number in range(4)] == [0, 0, 1, 1]
    journal.close()
    journal = EscalationJournal(tmp_path, limit=LEAST_BYTES)
    assert journal.put(entry(4)) == 1
    assert journal.put(entry(5, size=2 * LEAST_BYTES)) is None
    assert [found.time for found in entries_in(tmp_path, None) if found] == [3.0, 4.0]
    assert journal.size == sum(file.path.stat().st_size for file in files_in(tmp_path))
    journal.close()


def test_what_is_torn_is_told_and_the_rest_is_read(tmp_path: Path) -> None:
    for key in (None, KEY):
        folder = tmp_path / str(key is None)
        journal = EscalationJournal(folder, limit=LEAST_BYTES, key=key)
        for number in range(3):
            journal.put(entry(number, size=100))
        journal.close()
        first, second, _ = files_in(folder)
        os.truncate(first.path, first.size - 1)
        content = bytearray(second.path.read_bytes())
        content[-20] ^= 1
        second.path.write_bytes(content)
        (folder / "a" / ".00000000000000000001-00000000.entry.0123abcd.draft").write_bytes(b"half")
        assert [found and found.time for found in entries_in(folder, key)] == [None, None, 2.0]
        EscalationJournal(folder, limit=LEAST_BYTES, key=key).close()
        assert not list(folder.glob("a/.*"))


def test_another_version_s_entry_is_torn(tmp_path: Path) -> None:
    journal = EscalationJournal(tmp_path, limit=LEAST_BYTES)
    journal.put(ENTRY)
    journal.close()
    (file,) = files_in(tmp_path)
    for content in (b"", b"cutline escalation 2 plain\n", encode(ENTRY, None)[:40]):
        file.path.write_bytes(content)
        assert list(entries_in(tmp_path, None)) == [None]


def test_a_sealed_journal_needs_its_key(tmp_path: Path) -> None:
    journal = EscalationJournal(tmp_path, limit=LEAST_BYTES, key=KEY)
    journal.put(ENTRY)
    journal.close()
    for key, said in ((None, "is sealed; give its key"), (OTHER, "sealed by another key")):
        with pytest.raises(InputError, match=said):
            list(entries_in(tmp_path, key))
        with pytest.raises(InputError, match="sealed by another key, or by none"):
            EscalationJournal(tmp_path, limit=LEAST_BYTES, key=key)
    EscalationJournal(tmp_path, limit=LEAST_BYTES, key=KEY).close()
    with pytest.raises(InputError, match="64 hexadecimal digits"):
        SealingKey("secret")


def test_one_process_writes(tmp_path: Path) -> None:
    journal = EscalationJournal(tmp_path, limit=LEAST_BYTES)
    with pytest.raises(InputError, match="in use by another process"):
        EscalationJournal(tmp_path, limit=LEAST_BYTES)
    journal.close()
    with pytest.raises(InputError, match="holds nothing"):
        EscalationJournal(tmp_path, limit=10)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be used: File exists"):
        EscalationJournal(tmp_path / "file", limit=LEAST_BYTES)
    for tenant in (None, "a"):
        with pytest.raises(InputError, match="no journal at"):
            files_in(tmp_path / "nowhere", tenant)


def test_a_tenant_is_removed_while_another_process_writes(tmp_path: Path) -> None:
    journal = EscalationJournal(tmp_path, limit=LEAST_BYTES)
    for tenant in ("a", "b", "", "../a", "x" * 80):
        journal.put(entry(1, tenant, size=10))
    assert remove_tenant(tmp_path, "a") == 1
    assert remove_tenant(tmp_path, "../a") == 1
    assert remove_tenant(tmp_path, "nobody") == 0
    assert {file.tenant for file in files_in(tmp_path)} == {"b", "", folder_of("x" * 80)}
    journal.put(entry(2, size=LEAST_BYTES // 2))
    journal.put(entry(3, size=LEAST_BYTES // 2))
    assert [file.time for file in files_in(tmp_path)] == [3.0], "what was removed is no room"
    journal.close()


@pytest.mark.parametrize("tenant", ["", "a", "camera-1.x", "..", "_", "a/b", "\x00", "A" * 64])
def test_a_tenant_s_folder_is_one_of_its_own(tenant: str) -> None:
    folder = folder_of(tenant)
    assert folder not in (".", "..")
    assert "/" not in folder
    assert "\x00" not in folder
    assert folder_of(tenant_of(folder)) == folder


def test_a_full_disk_is_said_once_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    journal = EscalationJournal(tmp_path, limit=LEAST_BYTES)
    honest, full = journal.put, True

    def put(one: Escalation) -> int | None:
        if full:
            raise OSError(28, "No space left on device")
        return honest(one)

    monkeypatch.setattr(journal, "put", put)
    keeping = EscalationRecorder(journal)
    for number in range(3):
        keeping.keep(entry(number, size=10))
    while keeping.counts.lost < 3:
        pass
    full = False
    keeping.keep(entry(4, size=10))
    with caplog.at_level(logging.WARNING):
        keeping.close()
    assert keeping.counts == recorder.JournalCounts(kept=1, lost=3, size=journal.size)
    assert [record.getMessage() for record in caplog.records] == [
        "the journal keeps nothing until that is mended: No space left on device",
        "the journal keeps answers again",
    ]


def test_what_no_disk_keeps_up_with_is_lost_and_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = EscalationJournal(tmp_path, limit=LEAST_BYTES)
    go, honest = threading.Event(), journal.put
    monkeypatch.setattr(journal, "put", lambda one: (go.wait(), honest(one))[1])
    monkeypatch.setattr(recorder, "WAITING_BYTES", 3000)
    keeping = EscalationRecorder(journal)
    for number in range(4):
        keeping.keep(entry(number, size=10))
    assert keeping.counts.lost == 2
    go.set()
    keeping.close()
    assert keeping.counts.kept == len(files_in(tmp_path)) == 2


def test_one_that_is_too_large_is_lost_and_none_makes_room_for_it(tmp_path: Path) -> None:
    keeping = EscalationRecorder(journal := EscalationJournal(tmp_path, limit=LEAST_BYTES))
    for size in (1000, 2 * LEAST_BYTES):
        keeping.keep(entry(1, size=size))
    keeping.close()
    assert keeping.counts == recorder.JournalCounts(kept=1, lost=1, size=journal.size)
    assert len(files_in(tmp_path)) == 1
