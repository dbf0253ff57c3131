"""Weights by name, from a small hub on loopback: what is pulled, what is not, and what a hub may do wrong."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from cutline.core import telemetry
from cutline.errors import AccessDenied, BundleError, CutlineError, InputError, StorageError, WorkerUnavailable
from cutline.models.hub import download
from cutline.models.hub.download import Patience
from cutline.models.hub.library import PARTIAL, RECORD, entries, find_weights, home, read_record, remove
from cutline.models.hub.names import ModelName
from cutline.models.hub.weights import pull_weights
from cutline.testing.hub import COMMIT, SmallHub
from tests.models.hub.conftest import FILES, NAME, READ

WEIGHTS = "model.safetensors"


def pull(name: str = NAME, *, tries: int = 3, timeout: float = 30.0) -> tuple[Path, list[str]]:
    """The folder, and what was told."""
    told = list[str]()
    patience = Patience(timeout=timeout, tries=tries, sleep=lambda seconds: None)
    totals = list[tuple[int, int]]()
    folder, _ = pull_weights(
        ModelName.read(name), tell=told.append, on_total=lambda *one: totals.append(one), patience=patience
    )
    if totals:
        assert totals[-1][0] == totals[-1][1], "all of it"
    return folder, told


def failed(kind: type[CutlineError], **given: Any) -> str:
    """That a pull fails, in one line, and that nothing is there then."""
    with pytest.raises(kind) as found:
        pull(**given)
    assert "\n" not in str(found.value)
    assert [one.kind for one in entries() if one.kind != "unfinished"] == []
    return str(found.value)


def starts(hub: SmallHub, file: str) -> list[int]:
    return [one.start for one in hub.asked if one.file == file]


def test_the_hub_is_one_to_its_own_client(hub: SmallHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which knows the API better than we do."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    where: Any = {"endpoint": os.environ["HF_ENDPOINT"], "local_dir": tmp_path / "theirs"}
    for file in (WEIGHTS, "config.json"):
        got = huggingface_hub.hf_hub_download(NAME, file, **where)
        assert Path(got).read_bytes() == FILES[file]
    with pytest.raises(huggingface_hub.errors.EntryNotFoundError):
        huggingface_hub.hf_hub_download(NAME, "none.json", **where)


@pytest.mark.threat("hub")
def test_only_what_is_read_is_pulled(hub: SmallHub) -> None:
    folder, told = pull()
    assert sorted(file.name for file in folder.iterdir()) == sorted([*READ, RECORD])
    assert {name: (folder / name).read_bytes() for name in READ} == {name: FILES[name] for name in READ}
    assert sorted(one.file for one in hub.asked) == READ
    assert told == [f"{NAME} as of {COMMIT[:12]}: 4 files, 1.1 MB"]
    record = read_record(folder)
    assert (record.name, record.revision, record.commit) == (NAME, "main", COMMIT)
    assert record.hub == os.environ["HF_ENDPOINT"]
    assert record.size == sum(len(FILES[name]) for name in READ)
    assert not [path for path in hub.paths if "harness" in path or "telemetry" in path], "nobody is told of us"


def test_parts_of_weights_are_pulled_with_their_index(hub: SmallHub) -> None:
    del hub.files[WEIGHTS]
    parts = {f"model-0000{index}-of-00002.safetensors": bytes([index]) for index in (1, 2)}
    hub.files |= parts | {"model.safetensors.index.json": b"{}"}
    folder, _ = pull()
    assert {file.name for file in folder.glob("*safetensors*")} == {*parts, "model.safetensors.index.json"}


def test_what_is_here_is_not_pulled_again(hub: SmallHub) -> None:
    first, _ = pull()
    hub.asked.clear()
    assert pull(f"{NAME}@{COMMIT}") == (first, [f"{NAME} is here already, as of {COMMIT[:12]}"])
    assert hub.asked == []


def test_a_download_goes_on_by_itself_where_it_broke_off(hub: SmallHub) -> None:
    hub.faults.breaks[WEIGHTS] = [300_000, 200_000]
    folder, _ = pull()
    assert (folder / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert starts(hub, WEIGHTS) == [0, 300_000, 500_000]


def test_another_pull_goes_on_where_one_broke_off(hub: SmallHub) -> None:
    hub.faults.breaks[WEIGHTS] = [300_000, 0, 0]
    assert "pull again, and it goes on" in failed(WorkerUnavailable, tries=3)
    assert [one.kind for one in entries()] == ["unfinished"]
    hub.asked.clear()
    folder, _ = pull()
    assert (folder / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert starts(hub, WEIGHTS) == [300_000]
    assert starts(hub, "config.json") == [], "it was there"
    assert [one.kind for one in entries()] == ["weights"]


def test_a_hub_without_ranges_gives_all_again(hub: SmallHub) -> None:
    hub.faults.no_ranges = True
    hub.faults.breaks[WEIGHTS] = [300_000]
    folder, _ = pull()
    assert (folder / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert starts(hub, WEIGHTS) == [0, 0]


@pytest.mark.threat("hub")
@pytest.mark.parametrize("file", [WEIGHTS, "config.json"])
def test_what_is_not_what_the_hub_said_is_dropped(hub: SmallHub, file: str) -> None:
    hub.faults.lies[file] = FILES[file][:-1] + b"!"
    assert f"{file} is not what" in failed(BundleError)
    assert not list(home().glob(f"*/*/*{file}*")), "not even a part"
    hub.faults.lies.clear()
    assert (pull()[0] / file).read_bytes() == FILES[file]


def test_a_part_that_was_spoilt_on_disk_is_dropped(hub: SmallHub) -> None:
    hub.faults.breaks[WEIGHTS] = [300_000]
    failed(WorkerUnavailable, tries=1)
    (part,) = home().glob(f"*/*{PARTIAL}/.{WEIGHTS}.part")
    part.write_bytes(b"!" + part.read_bytes()[1:])
    assert "hash differs" in failed(BundleError)
    assert (pull()[0] / WEIGHTS).read_bytes() == FILES[WEIGHTS]


@pytest.mark.threat("hub")
@pytest.mark.parametrize("size", [10, 1 << 30])
def test_a_size_that_is_wrong_is_found_out_before_anything_comes(hub: SmallHub, size: int) -> None:
    hub.faults.sizes[WEIGHTS] = size
    assert f"another size of {WEIGHTS} than the {size} bytes" in failed(BundleError)
    assert not list(home().glob(f"*/*/*{WEIGHTS}*"))


@pytest.mark.parametrize("size", [-1, None, "many", 1 << 60])
def test_a_size_that_is_none(hub: SmallHub, size: Any) -> None:
    hub.faults.sizes[WEIGHTS] = size
    assert "does not say how large" in failed(BundleError)
    assert hub.asked == []


@pytest.mark.threat("hub")
@pytest.mark.parametrize("file", ["", WEIGHTS])
def test_a_hub_that_stalls_is_given_up(hub: SmallHub, file: str) -> None:
    hub.faults.stalls[file] = 1000
    assert "pull again, and it goes on" in failed(WorkerUnavailable, timeout=0.2, tries=2 if file else 1)
    if file:
        assert starts(hub, file) == [0, 1000], "the first got somewhere, the other nowhere"


def test_a_hub_with_too_much_to_do_is_asked_again(hub: SmallHub) -> None:
    hub.faults.statuses[WEIGHTS] = (503, "")
    assert "status 503" in failed(WorkerUnavailable, tries=2)
    assert hub.paths.count(f"/{NAME}/resolve/{COMMIT}/{WEIGHTS}") == 2


def test_a_disk_without_room_is_found_out_before(hub: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(os.sep)._replace(free=download.SPARE)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "make room" in failed(StorageError)
    assert hub.asked == []


@pytest.mark.threat("hub")
def test_a_disk_that_fills_up_in_the_middle(hub: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [2_000, 100_000]  # bytes until it is full, and what is made room for then

    def write(out: Any, piece: bytes) -> None:
        if len(piece) > left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= len(piece)
        out.write(piece)

    with monkeypatch.context() as patched:
        patched.setattr(download, "_write", write)
        assert "No space left" in failed(StorageError)
    assert (pull()[0] / WEIGHTS).read_bytes() == FILES[WEIGHTS]


@pytest.mark.threat("hub")
def test_a_token_is_for_the_hub_alone(hub: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = "hf_secret"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    pull()
    assert {one.token for one in hub.asked if not one.stored} == {"Bearer hf_secret"}
    assert {one.token for one in hub.asked if one.stored} == {None}, "large files are on another host"


def test_files_that_are_given_to_others_only(hub: SmallHub) -> None:
    hub.token = "hf_secret"
    assert "hf auth login" in failed(AccessDenied)


@pytest.mark.parametrize(("status", "code"), [(401, "GatedRepo"), (403, "GatedRepo"), (403, "")])
def test_a_model_that_is_shown_to_others_only(hub: SmallHub, status: int, code: str) -> None:
    hub.faults.statuses[""] = (status, code)
    assert "hf auth login" in failed(AccessDenied)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("maker/none", "has no model maker/none"),
        (f"{NAME}@v9", "has no revision 'v9'"),
        ("small-vlm", "has no owner"),
        ("../../etc/passwd", "names no model"),
        ("maker/..", "names no model"),
        ("a/b@../c", "names no model"),
        ("a--b/c", "names no model"),
        ("a/b\n", "names no model"),
    ],
)
def test_what_the_hub_does_not_have(hub: SmallHub, name: str, match: str) -> None:
    assert match in failed(InputError, name=name)


def test_a_file_that_is_listed_and_not_there(hub: SmallHub) -> None:
    hub.faults.statuses["config.json"] = (404, "EntryNotFound")
    assert "has no config.json" in failed(InputError)


@pytest.mark.parametrize(("file", "match"), [(WEIGHTS, "has no safetensors"), ("config.json", "has no config.json")])
def test_a_model_of_another_kind_is_not_pulled(hub: SmallHub, file: str, match: str) -> None:
    del hub.files[file]
    assert match in failed(InputError)
    assert hub.asked == []


@pytest.mark.parametrize(
    ("told", "kind"),
    [({"sha": "../../x"}, BundleError), ({"siblings": "none"}, BundleError), ({"id": None, "sha": None}, BundleError)],
)
def test_what_no_hub_answers(
    hub: SmallHub, monkeypatch: pytest.MonkeyPatch, told: dict[str, Any], kind: type[CutlineError]
) -> None:
    told = hub.described() | told
    monkeypatch.setattr(hub, "described", lambda: told)
    assert "HF_ENDPOINT" in failed(kind)


def test_no_hub(hub: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "127.0.0.1:9 does not answer" in failed(WorkerUnavailable)
    monkeypatch.setenv("HF_ENDPOINT", "the hub")
    assert "HF_ENDPOINT is no URL" in failed(InputError)


def test_offline_nobody_is_asked(hub: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(telemetry, "_GIVEN", "1")
        assert "HF_HUB_OFFLINE is set" in failed(InputError)
        assert hub.paths == []
    folder, _ = pull()
    hub.paths.clear()
    monkeypatch.setattr(telemetry, "_GIVEN", "true")
    assert pull()[0] == folder
    assert hub.paths == []


def test_only_a_pull_may_ask_a_hub(hub: SmallHub) -> None:
    pull()
    assert constants.HF_HUB_OFFLINE, "as everywhere else in this process"
    with pytest.raises(huggingface_hub.errors.OfflineModeIsEnabled):
        huggingface_hub.HfApi(endpoint=os.environ["HF_ENDPOINT"]).model_info(NAME)


@pytest.mark.threat("hub")
def test_a_link_in_the_way_is_not_followed(hub: SmallHub, tmp_path: Path) -> None:
    failed_at = home() / "weights" / f".maker--small-vlm--{COMMIT[:12]}{PARTIAL}"
    failed_at.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"mine")
    (failed_at / ".config.json.part").symlink_to(elsewhere)
    assert "cannot write" in failed(InputError)
    (failed_at / ".config.json.part").unlink()
    (failed_at / "config.json").symlink_to(elsewhere)
    assert not (pull()[0] / "config.json").is_symlink()
    assert elsewhere.read_bytes() == b"mine"


def test_two_at_once_are_not_in_each_others_way(hub: SmallHub) -> None:
    from cutline.models.hub.download import locked

    with locked(home() / "weights" / f".maker--small-vlm--{COMMIT[:12]}{PARTIAL}"):
        assert "another process" in failed(InputError)


def test_what_was_pulled_is_found_by_name_and_removed(hub: SmallHub) -> None:
    folder, _ = pull(f"{NAME}@v1")
    found: Callable[[str], Path | None] = lambda name: find_weights(ModelName.read(name))  # noqa: E731
    assert {found(name) for name in (NAME, f"{NAME}@v1", f"{NAME}@{COMMIT[:7]}")} == {folder}
    assert found(f"{NAME}@other") is found("no/such") is found("nothing") is None
    with pytest.raises(InputError, match="cutline list"):
        remove(ModelName.read(f"{NAME}@other"))
    (gone,) = remove(ModelName.read(NAME))
    assert (gone.kind, gone.version) == ("weights", COMMIT)
    assert (entries(), folder.exists()) == ([], False)


def test_what_is_broken_is_listed_and_can_be_removed(hub: SmallHub) -> None:
    folder, _ = pull()
    (folder / RECORD).write_bytes(b"{")
    (one,) = entries()
    assert (one.name, one.kind) == (NAME, "broken")
    remove(ModelName.read(NAME))
    assert not folder.exists()
