"""`cutline journal`: what it shows, what it deletes, and what it says of a folder that is none."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cutline.core.escalations.escalation import Escalation
from cutline.core.escalations.folder import EscalationJournal, files_in
from cutline.core.escalations.learnt import LearntRecord, note_learnt
from cutline.core.storage.envelope import SealingKey
from cutline.demo.bundles import DRAFTER
from cutline.models.bundle import Bundle, copy_bundle, set_origin
from cutline.models.hub.origin import Learnt, ModelOrigin

Run = Callable[..., Any]


@pytest.fixture(params=[None, "5a" * 32])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list[str]]:
    """A journal of two tenants, one of whose entries is torn, and the options that name its key."""
    key, options = None, list[str]()
    if request.param is not None:
        file = tmp_path / "key"
        file.write_text(request.param)
        file.chmod(0o600)
        key, options = SealingKey(request.param), ["--journal-key-file", str(file)]
    folder = tmp_path / "journal"
    writing = EscalationJournal(folder, limit=1 << 20, key=key)
    for day, tenant in enumerate(["camera1", "camera1", ""]):
        writing.put(Escalation(time=86400.0 * day, tenant=tenant, target="t", prompt=(1,), tokens=(2,)))
    writing.close()
    os.truncate(files_in(folder, "camera1")[0].path, 50)
    return folder, options


def test_show_says_what_there_is_of_whom(run: Run, journal: tuple[Path, list[str]]) -> None:
    folder, options = journal
    shown = run("journal", "show", str(folder), *options)
    assert shown.code == 0
    lines = sorted(shown.out.splitlines())
    assert lines[0].startswith("(no name): 1 answers, ")
    assert lines[1].startswith("camera1: 2 answers, ")
    assert lines[1].endswith("1970-01-01 to 1970-01-02, 1 torn")
    (one,) = json.loads(run("journal", "show", str(folder), "--tenant", "", "--json", *options).out)["tenants"]
    assert (one["tenant"], one["entries"], one["torn"]) == ("", 1, 0)


def test_without_its_key_a_sealed_journal_is_counted_alone(run: Run, journal: tuple[Path, list[str]]) -> None:
    folder, options = journal
    found = json.loads(run("journal", "show", str(folder), "--json").out)["tenants"]
    torn = {one["tenant"]: one["torn"] for one in found}
    assert torn == ({"": None, "camera1": None} if options else {"": 0, "camera1": 1})


def test_rm_deletes_a_tenant_or_all(run: Run, journal: tuple[Path, list[str]]) -> None:
    folder, _ = journal
    assert run("journal", "rm", str(folder), "--tenant", "camera1").out == "removed 2 answers of camera1\n"
    assert [file.tenant for file in files_in(folder)] == [""]
    assert "has nothing of 'camera1'" in run("journal", "rm", str(folder), "--tenant", "camera1").failed(2)
    assert json.loads(run("journal", "rm", str(folder), "--json").out) == {"removed": {"": 1}, "marked": []}
    assert run("journal", "show", str(folder)).out == f"{folder} is empty\n"


def test_a_wrong_key_and_a_folder_that_is_none_are_said(
    run: Run, tmp_path: Path, journal: tuple[Path, list[str]]
) -> None:
    folder, options = journal
    wrong = tmp_path / "wrong"
    wrong.write_text("1b" * 32)
    wrong.chmod(0o600)
    if options:
        assert "another key" in run("journal", "show", str(folder), "--journal-key-file", str(wrong)).failed(2)
    wrong.write_text("1b")
    assert "64 hex" in run("journal", "show", str(folder), "--journal-key-file", str(wrong)).failed(2)
    assert "no journal at" in run("journal", "show", str(tmp_path / "none")).failed(2)
    assert "no journal at" in run("journal", "rm", str(tmp_path / "none")).failed(2)
    given = ["edge", "--insecure", "--listen", "127.0.0.1:0", "--journal-key-file", str(wrong)]
    assert "give --journal too" in run(*given).failed(2)
    assert "--journal-limit is 1B" in run(*given[:-2], "--journal", str(folder), "--journal-limit", "1B").failed(2)


def test_a_drafter_that_learnt_from_what_is_deleted_is_marked(
    run: Run, tmp_path: Path, journal: tuple[Path, list[str]]
) -> None:
    folder, _ = journal
    learnt = Learnt(drafter="a" * 64, answers=2, tenants=("", "camera1"))
    for name in ("one", "gone", "replaced"):
        made = copy_bundle(Bundle.open(DRAFTER), tmp_path / name)
        set_origin(made, ModelOrigin(learnt=learnt))
        identity = "b" * 64 if name == "replaced" else made.manifest.identity
        note_learnt(folder, LearntRecord(bundle=str(made.path), identity=identity, tenants=("camera1",)))
    shutil.rmtree(tmp_path / "gone")
    assert run("journal", "rm", str(folder), "--tenant", "").out == "removed 1 answers of (no name)\n"
    removed, marked = run("journal", "rm", str(folder), "--tenant", "camera1").out.splitlines()
    assert removed == "removed 2 answers of camera1"
    assert marked == f"{tmp_path / 'one'} had learnt from them: it is marked, and to be made anew"
    shown = run("bundle", "show", str(tmp_path / "one")).out
    assert "learnt from 2 answers to (no name), camera1; before it was aaaaaaaaaaaa" in shown
    assert "to be made anew" in shown
    assert "to be made anew" not in run("bundle", "show", str(tmp_path / "replaced")).out


def test_it_is_marked_also_where_the_answers_have_made_room_since(run: Run, tmp_path: Path) -> None:
    EscalationJournal(folder := tmp_path / "journal", limit=1 << 20).close()
    learnt, copied = Learnt(drafter="a" * 64, answers=2, tenants=("camera1",)), list[Bundle]()
    for name in ("one", "other"):
        copied.append(copy_bundle(Bundle.open(DRAFTER), tmp_path / name))
        set_origin(copied[-1], ModelOrigin(learnt=learnt))
    made, other = copied
    note_learnt(
        folder, LearntRecord(bundle=str(made.path), identity=made.manifest.identity, tenants=("camera1", "camera2"))
    )
    for options in (["--tenant", "camera1"], []):
        found = json.loads(run("journal", "rm", str(folder), "--json", *options).out)
        assert found["marked"] == [str(made.path)]
        assert not sum(found["removed"].values())
    assert "has nothing of 'camera3'" in run("journal", "rm", str(folder), "--tenant", "camera3").failed(2)
    assert "to be made anew" in run("bundle", "show", str(made.path)).out
    assert "to be made anew" not in run("bundle", "show", str(other.path)).out
