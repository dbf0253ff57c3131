"""An export that is interrupted goes on where it stopped, and makes the same bundle."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
import torch
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

from cutline.cli.export import export as command
from cutline.errors import BundleError, InputError, StorageError
from cutline.models.bundle import Bundle
from cutline.models.export import export_bundle, make, work
from cutline.models.export.make import ExportProgress
from cutline.testing.models.random_models import write_text

pytestmark = pytest.mark.usefixtures("one_tower")

PACKAGE = Path(__file__).resolve().parents[2] / ".dev"
TARGET_STEPS = [
    "copy of config.json",
    "copy of model.safetensors",
    "vision tower",
    "decoder's first layers, fp32",
    "embeddings",
    "companions",
]
DRAFTER_STEPS = ["vision tower", "decoder, int8", "embeddings", "companions"]


@pytest.fixture(scope="module")
def hf(tiny: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "tiny"
    torch.manual_seed(5)
    config = SmolVLMConfig(**tiny(num_attention_heads=2))
    SmolVLMForConditionalGeneration(config).save_pretrained(folder)
    special = {"<pad>": 0, "<|im_start|>": 1, "<end_of_utterance>": 2, "<image>": 7, "<fake_token_around_image>": 8}
    write_text(folder, special, 90)
    whole = {"do_image_splitting": False, "size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(whole))
    return folder


@pytest.fixture
def copied(hf: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(hf, tmp_path / "hf" / "tiny"))


def export(
    hf: Path, out: Path, watch: Callable[[ExportProgress], None] = lambda _: None, **options: Any
) -> list[ExportProgress]:
    """Export, and return the steps as they finished."""
    finished: list[ExportProgress] = []

    def heard(progress: ExportProgress) -> None:
        if progress.finished:
            finished.append(progress)
        watch(progress)

    chosen: dict[str, Any] = {"role": "target", "precision": "fp32", "name": "tiny"} | options
    export_bundle(hf, out, progress=heard, **chosen)
    return finished


def reused(finished: list[ExportProgress]) -> list[str]:
    return [step.step for step in finished if step.reused]


def content(bundle: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in bundle.iterdir()}


class Stop(Exception):
    """Something that goes wrong."""


def stop_at(step: str, share: float = 0.0) -> Callable[[ExportProgress], None]:
    """Go wrong when `share` of a step is done: 0 is its beginning."""

    def watch(progress: ExportProgress) -> None:
        if progress.step == step and progress.share >= share:
            raise Stop

    return watch


@pytest.mark.parametrize(
    ("role", "precision", "steps"), [("target", "fp32", TARGET_STEPS), ("drafter", "int8", DRAFTER_STEPS)]
)
def test_a_stop_at_any_step_loses_no_step_before_it(
    hf: Path, tmp_path: Path, role: str, precision: str, steps: list[str]
) -> None:
    made = export(hf, tmp_path / "whole", role=role, precision=precision)
    assert [step.step for step in made] == steps
    assert reused(made) == []
    assert [step.number for step in made] == [*range(1, len(steps) + 1)]
    assert {step.steps for step in made} == {len(steps)}
    out = tmp_path / "out"
    for index, step in enumerate(steps):  # one attempt goes on from the other, each a step further
        with pytest.raises(Stop):
            export(hf, out, stop_at(step), role=role, precision=precision)
        assert not out.exists()
        assert (tmp_path / ".out.partial").exists() == (index > 0)
    assert reused(export(hf, out, role=role, precision=precision)) == steps[:-1]
    assert content(out) == content(tmp_path / "whole")
    assert Bundle.open(out).manifest.identity == Bundle.open(tmp_path / "whole").manifest.identity
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


# Each in a process of its own, of one that has imported torch already.
KILLED = """
import json, os, signal, sys
from pathlib import Path
from cutline.models.export import export_bundle

def export(step, share):
    def watch(progress):
        if progress.step == step and progress.share >= share:
            os.kill(os.getpid(), signal.SIGKILL)

    export_bundle(Path(sys.argv[1]), Path(sys.argv[2]), role="target", precision="fp32", name="tiny", progress=watch)

for line in sys.stdin:
    if (child := os.fork()) == 0:
        export(*json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_a_kill_in_the_middle_of_a_copy_and_another_later(hf: Path, tmp_path: Path) -> None:
    export(hf, tmp_path / "whole")
    out, home = tmp_path / "out", tmp_path / ".out.partial"
    environment = os.environ | {"PYTHONPATH": str(PACKAGE)}
    command = [sys.executable, "-c", KILLED, str(hf), str(out)]
    with subprocess.Popen(command, env=environment, stdin=PIPE, stdout=PIPE, text=True) as exports:
        assert exports.stdin is not None
        assert exports.stdout is not None
        for step, share in (("copy of model.safetensors", 1e-9), ("embeddings", 0.0)):
            print(json.dumps([step, share]), file=exports.stdin, flush=True)
            assert exports.stdout.readline() == f"{-signal.SIGKILL}\n"
            assert not out.exists()
            done = TARGET_STEPS[: TARGET_STEPS.index(step)]
            _, *steps = (home / "journal.jsonl").read_bytes().splitlines()
            assert [json.loads(line)["key"] for line in steps] == done
    assert reused(export(hf, out)) == TARGET_STEPS[:-2]
    assert content(out) == content(tmp_path / "whole")
    assert not home.exists()


def test_a_kill_before_the_bundle_is_moved_into_place(
    hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both before the old bundle is out of the way, and after."""
    export(hf, tmp_path / "out", name="old")
    rename = Path.rename

    def stop(path: Path, to: Path) -> Path:
        if path.name == "bundle":
            raise Stop
        return rename(path, to)

    for moves in (lambda path, to: stop(Path("bundle"), to), stop):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", moves)
            with pytest.raises(Stop):
                export(hf, tmp_path / "out", name="new")
    assert reused(export(hf, tmp_path / "out", name="new")) == TARGET_STEPS
    assert Bundle.open(tmp_path / "out").manifest.name == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def change_a_weight(folder: Path, _: pytest.MonkeyPatch) -> None:
    path = folder / "model.safetensors"
    before = path.stat()
    path.write_bytes(path.read_bytes()[:-1] + b"\x3d")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def add_a_file(folder: Path, _: pytest.MonkeyPatch) -> None:
    (folder / "notes.txt").touch()


def lose_a_file(folder: Path, _: pytest.MonkeyPatch) -> None:
    (folder / "generation_config.json").unlink()


def write_again(folder: Path, _: pytest.MonkeyPatch) -> None:
    path = folder / "tokenizer.json"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def be_another_version(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(work, "version", lambda maker: "0.0.9" if maker == "cutline" else version(maker))


def be_other_code(_: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(work, "CODE", Path(__file__).parent)


@pytest.mark.parametrize(
    "change", [change_a_weight, add_a_file, lose_a_file, write_again, be_another_version, be_other_code]
)
def test_a_fingerprint_shows_every_change(
    copied: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path, pytest.MonkeyPatch], None]
) -> None:
    before = work.fingerprint(copied, role="target")
    assert work.fingerprint(copied, role="target") == before
    assert work.fingerprint(copied, role="drafter") != before
    change(copied, monkeypatch)
    assert work.fingerprint(copied, role="target") != before


def test_what_changed_is_exported_anew(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with pytest.raises(Stop):
        export(copied, out, stop_at("vision tower"))
    with pytest.raises(Stop):
        export(copied, out, stop_at("embeddings"), role="drafter", precision="int8")
    assert not (tmp_path / ".out.partial" / "bundle" / "model.safetensors").exists()
    change_a_weight(copied, monkeypatch)
    with pytest.raises(Stop):
        export(copied, out, stop_at("embeddings"), role="drafter", precision="int8")
    finished = export(copied, out, role="drafter", precision="int8", name="renamed")  # which no file but one holds
    assert reused(finished) == DRAFTER_STEPS[:2]
    assert Bundle.open(out).manifest.name == "renamed"


def write(name: str, content: str) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / name).write_text(content)
        return "written"

    return make


def begun(out: Path) -> Path:
    """A work folder with the steps a and b finished; returns where it is."""
    with work.work_beside(out, "source") as begun:
        assert begun.step("a", write("a.txt", "A")) == "written"
        assert begun.step("b", write("b.txt", "B")) == "written"
        write("c.txt", "half")(begun.folder)
    return out.with_name(f".{out.name}.partial")


@pytest.mark.parametrize("spoil", [lambda path: path.write_text("else"), lambda path: path.unlink()])
def test_a_step_whose_files_changed_is_taken_again(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    home = begun(tmp_path / "out")
    spoil(home / "bundle" / "a.txt")
    (home / "bundle" / "half-done").mkdir()
    (home / "bundle" / "half-done" / "cache").touch()
    with work.work_beside(tmp_path / "out", "source") as again:
        assert [path.name for path in again.folder.iterdir()] == ["b.txt"]
        assert again.step("b", write("b.txt", "never")) is None
        assert again.step("a", write("a.txt", "A")) == "written"
        again.place(tmp_path / "out")
    assert content(tmp_path / "out") == {"a.txt": b"A", "b.txt": b"B"}
    assert not home.exists()


@pytest.mark.parametrize("journal", [b"", b"{}\n", b'{"inputs": 3}\n', b"\xff", b'{"inputs": "other"}\n'])
def test_a_journal_that_is_broken_or_anothers_is_none(tmp_path: Path, journal: bytes) -> None:
    home = begun(tmp_path / "out")
    (home / "journal.jsonl").write_bytes(journal)
    with work.work_beside(tmp_path / "out", "source") as again:
        assert list(again.folder.iterdir()) == []
    assert not home.exists(), "nothing in it is worth keeping"


def test_a_lock_that_went_away_with_its_folder_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between our opening the lock and holding it, whoever held it finished and removed it."""
    lock = fcntl.flock
    removed: list[Path] = []

    def late(handle: Any, operation: int) -> None:
        if not removed:
            removed.append(tmp_path / ".out.partial")
            shutil.rmtree(removed[0])
        lock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    assert begun(tmp_path / "out") in removed
    assert (removed[0] / "lock").exists()


def test_what_differs_from_torch_is_refused_again_and_the_rest_is_kept(
    hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> float:
        raise BundleError("differs")

    with monkeypatch.context() as patch:
        patch.setattr(make, "export_prefixes", fail)
        for _ in range(2):
            with pytest.raises(BundleError, match="differs"):
                export(hf, tmp_path / "out")
    assert reused(export(hf, tmp_path / "out")) == TARGET_STEPS[:3]


def test_the_command_says_what_was_finished_before(
    hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> float:
        raise BundleError("differs")

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(make, "export_prefixes", fail)
        with pytest.raises(BundleError):
            command(hf, out=out, role="target")
    command(hf, out=out, role="target")
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert [line for line in lines if line.endswith("finished before")] == [
        *(f"{number} of 6: {step}: finished before" for number, step in enumerate(TARGET_STEPS[:3], 1)),
        lines[-1],
    ]
    assert lines[-1].startswith(f"{out}: target, fp32, ")
    assert lines[-1].endswith("; 3 of 6 steps were finished before")
    command(hf, out=out, role="target")
    assert "finished before" not in capsys.readouterr().err


def test_a_full_disk_is_one_line(hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> float:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(make, "export_prefixes", fail)
    with pytest.raises(StorageError, match=r"No space left on device; what was there is as it was"):
        export(hf, tmp_path / "out")


def test_a_second_export_at_once_is_refused(hf: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def meanwhile(progress: ExportProgress) -> None:
        if progress.step == "embeddings":
            with pytest.raises(InputError, match=r"another export to .*out is running"):
                export(hf, out)

    assert reused(export(hf, out, meanwhile)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json"):
        export(tmp_path / "nowhere", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("planted", [".", "bundle", "lock", "journal.draft"])
def test_a_link_in_the_work_folder_is_refused_and_what_it_leads_to_stays(tmp_path: Path, planted: str) -> None:
    victim = tmp_path / "victim"
    (victim / "bundle").mkdir(parents=True)
    (victim / "bundle" / "letter").write_text("dear")
    (victim / "letter").write_text("dear")
    home = tmp_path / ".out.partial"
    if planted == ".":
        home.symlink_to(victim)
    else:
        home.mkdir()
        (home / planted).symlink_to(victim if planted == "bundle" else victim / "letter")
    with pytest.raises(InputError, match=r"is a link"), work.work_beside(tmp_path / "out", "source"):
        pass
    assert sorted(path.name for path in victim.iterdir()) == ["bundle", "letter"]
    assert (victim / "letter").read_text() == (victim / "bundle" / "letter").read_text() == "dear"


def test_a_link_among_what_a_step_left_is_removed_alone(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "letter").write_text("dear")
    (tmp_path / ".out.partial" / "bundle").mkdir(parents=True)
    (tmp_path / ".out.partial" / "bundle" / "left").symlink_to(tmp_path / "victim")
    with work.work_beside(tmp_path / "out", "source") as here:
        assert list(here.folder.iterdir()) == []
    assert (tmp_path / "victim" / "letter").read_text() == "dear"
