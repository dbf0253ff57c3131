"""Bundles: what their identity covers, and what is not opened."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cutline.errors import BundleError
from cutline.models.bundle import (
    CALIBRATION,
    FORMAT,
    MANIFEST,
    Bundle,
    DecoderSpec,
    Manifest,
    VisionSpec,
    write_calibration,
    write_manifest,
)
from cutline.models.families.smolvlm import SmolVLM
from cutline.models.layerline import LayerLine

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
    manifest = json.loads((bundle.path / MANIFEST).read_text())
    change(manifest)
    (bundle.path / MANIFEST).write_text(json.dumps(manifest))


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
    bundle: Bundle, change: Callable[[dict[str, Any]], object]
) -> None:
    edit(bundle, change)
    assert Bundle.open(bundle.path).manifest.identity != bundle.manifest.identity


def test_files_are_part_of_the_identity_in_any_order(bundle: Bundle) -> None:
    edit(bundle, lambda said: said.update(files=dict(reversed(said["files"].items()))))
    assert Bundle.open(bundle.path).manifest.identity == bundle.manifest.identity
    (bundle.path / "weights").write_bytes(b"0124")
    assert write_manifest(bundle.path, bundle.manifest).identity != bundle.manifest.identity


def test_a_calibration_takes_the_place_of_another_and_changes_no_identity(bundle: Bundle) -> None:
    for threshold in (0.25, 0.5):
        write_calibration(bundle, Measured(threshold))
        opened = Bundle.open(bundle.path)
        assert json.loads(opened.file(CALIBRATION).read_bytes()) == {"threshold": threshold}
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
