"""Bundles: what their identity covers, and what is not opened."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cutline.core.storage.seal import unseal
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.errors import BundleError
from cutline.models.bundle import (
    FORMAT,
    MANIFEST,
    Bundle,
    DecoderSpec,
    Manifest,
    VisionSpec,
    copy_bundle,
    read_manifest,
    write_calibration,
    write_manifest,
)
from cutline.models.families.smolvlm import SmolVLM
from cutline.models.hub.origin import ModelOrigin
from cutline.models.layerline import LayerLine
from cutline.testing.models.manifests import edit_manifest

BUNDLES = Path(__file__).parent / "bundles"

BLANK = Manifest(
    format=FORMAT,
    name="test",
    role="drafter",
    precision="int8",
    line=LayerLine(vision=1, decoder=1),
    family=SmolVLM(tile=32, patch=8, tile_tokens=4, longest_edge=128, split=True),
    parameters=(10, 20, 30, 40, 50),
    vision=VisionSpec(width=8, heads=1),
    decoder=DecoderSpec(width=8, layers=1, heads=1, kv_heads=1, head_dim=8, vocabulary=512, context=64),
    stop_tokens=(2,),
    image_token=3,
    target=None,
    files={},
)


class Measured(msgspec.Struct):
    threshold: float


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    (tmp_path / "weights").write_bytes(b"0123")
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    write_manifest(tmp_path, BLANK)
    return Bundle.open(tmp_path)


def edit(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> None:
    edit_manifest(bundle.path, change)


# Of the bundles beside this file, for ever: one of each format that there was.
IDENTITIES = {
    "format1": "a39de11d27a80d38764d42eda4e8cfc38b68f4a1aa4610c95374d23d6b04f83e",
    "format2": "932b9d7c3d9a548613597fa643d664bb473b03db535757c2061666a47ad9caaf",
}


@pytest.fixture(params=sorted(IDENTITIES))
def pinned(request: pytest.FixtureRequest, tmp_path: Path) -> Bundle:
    """One of those, in a folder that may change."""
    return Bundle.open(Path(shutil.copytree(BUNDLES / request.param, tmp_path / request.param)))


def test_an_identity_is_for_ever(pinned: Bundle, tmp_path: Path) -> None:
    identity = IDENTITIES[pinned.path.name]
    assert pinned.manifest.identity == identity
    assert pinned.manifest.calibration == {"threshold": 0.25, "risk": 0.05}
    assert copy_bundle(pinned, tmp_path / "copy").manifest == pinned.manifest
    assert Bundle.open(tmp_path / "copy").manifest == pinned.manifest
    write_calibration(pinned, Measured(0.5))
    again = Bundle.open(pinned.path).manifest
    assert again == msgspec.structs.replace(pinned.manifest, calibration={"threshold": 0.5})
    assert json.loads((pinned.path / MANIFEST).read_bytes())["format"] == FORMAT, "it is of today's format now"
    assert sorted(file.name for file in pinned.path.iterdir()) == [MANIFEST, "tokenizer.json", "weights"]


def test_the_demos_bundles_know_each_other() -> None:
    assert read_manifest(DRAFTER).target == read_manifest(TARGET).identity


def test_a_byte_that_changed_anywhere_in_a_manifest_is_refused(bundle: Bundle) -> None:
    """Each byte in turn: some tries would let a rare one through."""
    write_calibration(bundle, Measured(0.25))
    whole = (bundle.path / MANIFEST).read_bytes()
    for at, byte in enumerate(whole):
        other = byte ^ (1, 0x10, 0x80)[at % 3]
        (bundle.path / MANIFEST).write_bytes(whole[:at] + bytes([other]) + whole[at + 1 :])
        with pytest.raises(BundleError):
            read_manifest(bundle.path)
    for cut in range(0, len(whole), 10):
        (bundle.path / MANIFEST).write_bytes(whole[:cut])
        with pytest.raises(BundleError):
            read_manifest(bundle.path)


def test_a_manifest_without_its_digest_or_identity_is_refused(bundle: Bundle) -> None:
    whole = (bundle.path / MANIFEST).read_bytes()
    edit(bundle, lambda said: said.update(identity=""))
    with pytest.raises(BundleError, match="no identity"):
        Bundle.open(bundle.path)
    (bundle.path / MANIFEST).write_bytes(unseal(whole))
    with pytest.raises(BundleError, match="no digest of its own"):
        Bundle.open(bundle.path)


def test_a_calibration_that_is_interrupted_leaves_a_bundle(pinned: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after any step: what opens is what was there, or all that is there now."""
    before = pinned.manifest.calibration
    for name, owner in (("write", os), ("fsync", os), ("replace", Path), ("unlink", Path)):

        def kill(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(owner, name, kill)
            if name != "unlink":
                patch.setattr(Path, "unlink", kill)  # a kill cleans nothing up
            write_calibration(pinned, Measured(0.5))
        found = Bundle.open(pinned.path).manifest
        assert found.identity == pinned.manifest.identity
        assert found.calibration in (before, {"threshold": 0.5})
    assert Bundle.open(pinned.path).manifest.calibration == {"threshold": 0.5}


@pytest.mark.parametrize("name", [MANIFEST, "tokenizer.json", "calibration.json"])
@pytest.mark.parametrize("kind", ["pipe", "loop", "device", "folder"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, name: str, kind: str) -> None:
    """A pipe is not waited for, and a device not read until memory is full."""
    folder = Path(shutil.copytree(BUNDLES / "format1", tmp_path / "bundle"))
    (folder / name).unlink()
    match kind:
        case "pipe":
            os.mkfifo(folder / name)
        case "loop":
            (folder / name).symlink_to(name)
        case "device":
            (folder / name).symlink_to("/dev/zero")
        case _:
            (folder / name).mkdir()
    with pytest.raises(BundleError, match=name):
        Bundle.open(folder)


@pytest.mark.parametrize("name", [MANIFEST, "tokenizer.json", "calibration.json"])
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(BUNDLES / "format1", tmp_path / "bundle"))
    real = os.open

    def deny(path: Any, *given: Any, **named: Any) -> int:
        if Path(path).name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *given, **named)

    monkeypatch.setattr(os, "open", deny)
    with pytest.raises(BundleError, match=f"{name} in .* cannot be read: Permission denied"):
        Bundle.open(folder)


def test_a_manifest_without_end_is_not_read_whole(bundle: Bundle) -> None:
    with (bundle.path / MANIFEST).open("ab") as file:
        file.truncate(1 << 40)  # a hole
    with pytest.raises(BundleError, match="larger than"):
        Bundle.open(bundle.path)


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said.update(stop_tokens=[2, 4]),
        lambda said: said.update(image_token=4),
        lambda said: said["family"].update(mean=[0.5, 0.5, 0.4]),
        lambda said: said["decoder"].update(context=32),
        lambda said: said.update(target="0" * 64),
    ],
)
def test_whatever_a_manifest_says_is_part_of_its_identity(
    bundle: Bundle, change: Callable[[dict[str, Any]], object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """When it is made; and of a bundle of the first format, which had none in it, whenever it is read."""
    edit(bundle, change)
    changed = read_manifest(bundle.path)
    assert changed.identity == bundle.manifest.identity
    assert write_manifest(bundle.path, changed).identity != bundle.manifest.identity
    old = Bundle.open(Path(shutil.copytree(BUNDLES / "format1", tmp_path_factory.mktemp("old") / "format1")))
    edit(old, change)
    assert Bundle.open(old.path).manifest.identity != old.manifest.identity


def test_where_weights_are_from_is_told_and_is_no_part_of_the_identity(bundle: Bundle) -> None:
    """So that a pair fits that was made of one model, pulled here and copied there."""
    origin = ModelOrigin("https://hub.example", "maker/model", "main", "0" * 40, {"model.safetensors": "a" * 64})
    told = write_manifest(bundle.path, msgspec.structs.replace(bundle.manifest, origin=origin))
    assert told.identity == bundle.manifest.identity
    assert Bundle.open(bundle.path).manifest.origin == origin
    assert copy_bundle(Bundle.open(bundle.path), bundle.path.parent / "copy").manifest.origin == origin
    write_calibration(Bundle.open(bundle.path), Measured(0.5))
    assert Bundle.open(bundle.path).manifest.origin == origin
    edit(bundle, lambda said: said["origin"].update(name="\x1b[2J"))  # which a terminal would obey
    with pytest.raises(BundleError, match="does not read"):
        Bundle.open(bundle.path)


def test_files_are_part_of_the_identity_in_any_order(bundle: Bundle) -> None:
    edit(bundle, lambda said: said.update(files=dict(reversed(said["files"].items()))))
    assert Bundle.open(bundle.path).manifest.identity == bundle.manifest.identity
    (bundle.path / "weights").write_bytes(b"0124")
    assert write_manifest(bundle.path, bundle.manifest).identity != bundle.manifest.identity


def test_a_calibration_takes_the_place_of_another_and_changes_no_identity(bundle: Bundle) -> None:
    for threshold in (0.25, 0.5):
        write_calibration(bundle, Measured(threshold))
        opened = Bundle.open(bundle.path)
        assert opened.manifest.calibration == {"threshold": threshold}
        assert opened.manifest.identity == bundle.manifest.identity
        bundle = opened


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda said: said["family"].update(tile=0), "family.tile"),
        (lambda said: said["family"].update(longest_edge=-1), "family.longest_edge"),
        (lambda said: said["family"].update(std=[0.5, 0.0, 0.5]), "family.std"),
        (lambda said: said["decoder"].update(kv_heads=0), "decoder.kv_heads"),
        (lambda said: said["line"].update(vision=0), "line.vision"),
        (lambda said: said["line"].update(vision=10**9), "line.vision"),
        (lambda said: said["decoder"].update(layers=1001), "decoder.layers"),
        (lambda said: said["decoder"].update(context=10**12), "decoder.context"),
        (lambda said: said["family"].update(patch=10**12), "family.patch"),
        (lambda said: said.update(parameters=[10**30] * 5), "parameters"),
        (lambda said: said.update(image_token=-1), "image_token"),
        (lambda said: said.update(stop_tokens=[-2]), "stop_tokens"),
    ],
)
def test_a_size_that_cannot_be_is_named(bundle: Bundle, change: Callable[[dict[str, Any]], object], place: str) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError, match=rf"does not read .*\$\.{place}"):
        Bundle.open(bundle.path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda said: said["decoder"].update(layers=2), "1 decoder layers in `line` and 2 in `decoder`"),
        (lambda said: said.update(parameters=[1, 2, 3, 4]), "4 `parameters` for 5 layers"),
    ],
)
def test_sizes_that_do_not_agree_are_refused(
    bundle: Bundle, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError, match=words):
        Bundle.open(bundle.path)


@pytest.mark.threat("code")
@pytest.mark.parametrize("name", ["generation_config.json", "added_tokens.json", ".hidden"])
def test_a_file_that_the_manifest_does_not_list_is_refused(bundle: Bundle, name: str) -> None:
    (bundle.path / name).write_text("{}")
    with pytest.raises(BundleError, match=f"{name} in .* is not in the manifest; remove it"):
        Bundle.open(bundle.path)


def test_a_folder_in_a_bundle_is_refused(bundle: Bundle) -> None:
    (bundle.path / "onnx").mkdir()
    with pytest.raises(BundleError, match=r"onnx in .* is not in the manifest"):
        Bundle.open(bundle.path)
