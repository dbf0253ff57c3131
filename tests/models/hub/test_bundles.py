"""Bundles from who serves them: what is pulled, and what a server may do wrong."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cutline.core.storage.seal import seal, unseal
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.errors import AccessDenied, BundleError, CutlineError, InputError, StorageError, WorkerUnavailable
from cutline.models.bundle import EMBEDDINGS, MANIFEST, Bundle, write_calibration
from cutline.models.encoders.bundle import EncoderBundle
from cutline.models.hub import download
from cutline.models.hub.bundles import BundleSource, pull_bundle
from cutline.models.hub.download import Patience, RemoteFile
from cutline.models.hub.library import bundle_path, entries, home
from cutline.testing.hub import SmallHub

LARGEST = max(DRAFTER.iterdir(), key=lambda file: file.stat().st_size).name


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def server(hub: SmallHub) -> SmallHub:
    """A plain server of files, the demo's drafter."""
    hub.files = contents(DRAFTER)
    return hub


def pull(*, name: str | None = "team/digits", tries: int = 3, timeout: float = 30.0, **given: Any) -> list[str]:
    told = list[str]()
    patience = Patience(timeout=timeout, tries=tries, sleep=lambda seconds: None)
    source = BundleSource(url=f"{os.environ['HF_ENDPOINT']}/store", near=True)
    kept, bundle = pull_bundle(
        source, name=name, tell=told.append, on_total=lambda held, size: None, patience=patience, **given
    )
    assert bundle.path == bundle_path(kept, bundle.manifest.role)
    return told


def failed(kind: type[CutlineError], **given: Any) -> str:
    """That a pull fails, in one line, and that nothing is there then."""
    with pytest.raises(kind) as found:
        pull(**given)
    assert "\n" not in str(found.value)
    assert [one.kind for one in entries() if one.kind != "unfinished"] == []
    return str(found.value)


def starts(server: SmallHub, file: str) -> list[int]:
    return [one.start for one in server.asked if one.file == file]


def said(change: Callable[[dict[str, Any]], object], folder: Path = DRAFTER) -> bytes:
    """A manifest that was changed by whoever serves it."""
    manifest = json.loads(unseal((folder / MANIFEST).read_bytes()))
    change(manifest)
    return seal(json.dumps(manifest, indent=2).encode())


def test_a_bundle_is_pulled_as_it_is(server: SmallHub) -> None:
    (told,) = pull()
    path = bundle_path("team/digits", "drafter")
    assert contents(path) == contents(DRAFTER)
    assert Bundle.open(path).manifest == Bundle.open(DRAFTER).manifest
    assert told.startswith("team/digits: drafter, ")
    server.asked.clear()
    assert pull() == [f"team/digits is here already, identity {Bundle.open(path).manifest.identity[:12]}"]
    assert [one.file for one in server.asked] == [MANIFEST]
    assert [one.kind for one in entries()] == ["bundle"]


def test_its_name_is_in_its_url(server: SmallHub) -> None:
    pull(name=None)
    assert [one.name for one in entries()] == ["store"]


def test_a_device_may_leave_a_targets_weights(server: SmallHub) -> None:
    server.files = contents(TARGET)
    pull(part="device")
    path = bundle_path("team/digits", "target")
    assert Bundle.open(path, "device").file(EMBEDDINGS).is_file()
    assert "model.safetensors" not in [one.file for one in server.asked]
    pull()
    assert contents(path) == contents(TARGET), "the rest came too"


def test_an_encoder_is_pulled(server: SmallHub, encoders: Callable[[str], tuple[Path, EncoderBundle]]) -> None:
    _, bundle = encoders("clip")
    server.files = contents(bundle.path)
    pull()
    assert EncoderBundle.open(bundle_path("team/digits", "encoder")).manifest == bundle.manifest


def test_a_newer_one_takes_the_place_of_an_older(server: SmallHub, tmp_path: Path) -> None:
    pull()
    newer = Bundle.open(shutil.copytree(DRAFTER, tmp_path / "newer"))
    write_calibration(newer, RemoteFile(name="", url="", size=0))  # of whatever kind
    server.files = contents(newer.path)
    pull()
    assert contents(bundle_path("team/digits", "drafter")) == contents(newer.path)
    assert len(list((home() / "bundles").iterdir())) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_a_pull_goes_on_where_one_broke_off(server: SmallHub, ranges: bool) -> None:
    size = len(server.files[LARGEST])
    server.faults.no_ranges = not ranges
    server.faults.breaks[LARGEST] = [size // 2]
    assert "pull again, and it goes on" in failed(WorkerUnavailable, tries=1)
    server.asked.clear()
    pull()
    assert starts(server, LARGEST) == [size // 2 if ranges else 0]
    assert contents(bundle_path("team/digits", "drafter")) == contents(DRAFTER)


@pytest.mark.threat("hub")
def test_a_file_that_is_not_the_manifests(server: SmallHub) -> None:
    server.faults.lies[LARGEST] = server.files[LARGEST][:-1] + b"!"
    assert f"{LARGEST} is not what" in failed(BundleError)
    assert not list(home().glob(f"*/*/*{LARGEST}*"))


def test_a_manifest_that_was_changed_by_hand(server: SmallHub) -> None:
    server.files[MANIFEST] = server.files[MANIFEST].replace(b'"drafter"', b'"DRAFTER"')
    assert "has no bundle that this version reads" in failed(BundleError)
    assert entries() == [], "not even unfinished"


@pytest.mark.threat("hub")
@pytest.mark.parametrize("name", ["../../escaped", "/etc/passwd", ".hidden", "a/b", "x" * 300, "a\nb"])
def test_names_that_lead_elsewhere(server: SmallHub, name: str) -> None:
    digest = hashlib.sha256(b"evil").hexdigest()
    server.files[MANIFEST] = said(lambda manifest: manifest["files"].update({name: digest}))
    server.files[name] = b"evil"
    assert "which is none of a bundle" in failed(BundleError)
    assert [one.file for one in server.asked] == [MANIFEST]


def test_hashes_that_are_none(server: SmallHub) -> None:
    server.files[MANIFEST] = said(lambda manifest: manifest["files"].update({LARGEST: ""}))
    assert "which is none of a bundle" in failed(BundleError)


def test_more_files_than_a_bundle_has(server: SmallHub) -> None:
    many = {f"file{index}": "0" * 64 for index in range(3000)}
    server.files[MANIFEST] = said(lambda manifest: manifest["files"].update(many))
    assert "more than a bundle has" in failed(BundleError)


def test_a_manifest_without_an_end(server: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutline.models.hub.bundles.MAX_MANIFEST", 1000)
    assert "of more than 1000 bytes" in failed(BundleError)


@pytest.mark.parametrize("file", [MANIFEST, LARGEST])
@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, AccessDenied), (403, AccessDenied), (404, InputError), (301, InputError), (503, WorkerUnavailable)],
)
def test_a_server_that_refuses(server: SmallHub, file: str, status: int, kind: type[CutlineError]) -> None:
    server.faults.statuses[file] = (status, "")
    assert "127.0.0.1" in failed(kind)


@pytest.mark.threat("hub")
@pytest.mark.parametrize("file", [MANIFEST, LARGEST])
def test_a_server_that_stalls(server: SmallHub, file: str) -> None:
    server.faults.stalls[file] = 10
    assert "127.0.0.1" in failed(WorkerUnavailable, timeout=0.2, tries=2)


def test_a_disk_without_room(server: SmallHub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(os.sep)._replace(free=download.SPARE)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "make room" in failed(StorageError)
    assert [one.file for one in server.asked] == [MANIFEST]
