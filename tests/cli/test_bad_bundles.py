"""Bundles that are not there, changed, of another kind or of another model: one line, and a documented exit code."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cutline.demo.bundles import DRAFTER, TARGET
from cutline.errors import (
    BundleError,
    ModelMismatch,
)
from cutline.models.bundle import MANIFEST, Bundle, span_file, write_manifest
from cutline.testing.models.manifests import edit_manifest

Run = Callable[..., Any]
NOBODY = "127.0.0.1:1"


@pytest.mark.parametrize("mode", ["split", "draft", "auto"])
def test_cuts_that_cannot_be(run: Run, card: Path, bundle: Path, tmp_path: Path, mode: str) -> None:
    """Before anything is asked: also where the gate might have kept the answer."""
    asked = ("ask", card, "What?", "--mode", mode, "--worker", NOBODY, "--cut")
    assert "cuts: image, vision.0" in run(*asked, "magic").failed(2)
    assert "--target" in run(*asked, "decoder.1", "--bundle", bundle).failed(2)
    target = Path(shutil.copytree(TARGET, tmp_path / "target"))
    (target / span_file("decoder.2", "decoder.0")).unlink()
    manifest = write_manifest(target, Bundle.open(TARGET).manifest)
    both = ("--bundle", bundle, "--target", target)
    assert "another target" in run(*asked, "decoder.1", *both).failed(ModelMismatch.exit_code)
    change_manifest(bundle, target=manifest.identity)
    assert "no graphs for the cut decoder.2, only for" in run(*asked, "decoder.2", *both).failed(2)
    assert "share above 0" in run(*asked, "decoder.2", *both, "--keep-image-tokens", "-1").failed(2)
    assert "it has" in run(*asked, "decoder.1", *both, "--provider", "abacus").failed(2)


def change_manifest(bundle: Path, **changes: Any) -> None:
    edit_manifest(bundle, lambda said: said.update(changes))


def test_a_worker_of_another_model(run: Run, card: Path, bundle: Path, worker: str) -> None:
    change_manifest(bundle, target="f" * 64)
    asked = ("ask", card, "What?", "--worker", worker, "--bundle", bundle)
    sampled = ("--temperature", "0.5")  # of which the gate keeps nothing
    for mode in (("cloud",), ("draft",), ("auto", *sampled)):
        assert "ffffffffffff" in run(*asked, "--mode", *mode).failed(ModelMismatch.exit_code)
    ran = run("ask", card, "What?", "--mode", "cloud", "--worker", worker, "--json")
    assert ran.code == 0, "and the worker goes on"


def test_a_bundle_that_is_not_there(run: Run, card: Path, tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path, card):
        run("ask", card, "What?", "--bundle", folder).failed(BundleError.exit_code)
    run("cloud", "--bundle", tmp_path, "--insecure", "--listen", "127.0.0.1:0").failed(3)
    run("edge", "--bundle", tmp_path, "--insecure", "--listen", "127.0.0.1:0").failed(3)


@pytest.mark.parametrize(
    "manifest", [b"", b"{", b"[]", b"\xff", b'{"format": 1}', b'{"format": "one"}', b"[" * 50_000], ids=repr
)
def test_a_manifest_that_does_not_read(run: Run, card: Path, bundle: Path, manifest: bytes) -> None:
    (bundle / MANIFEST).write_bytes(manifest)
    run("ask", card, "What?", "--bundle", bundle).failed(3)


def test_a_bundle_of_another_format(run: Run, card: Path, bundle: Path) -> None:
    change_manifest(bundle, format=99)
    assert "99" in run("ask", card, "What?", "--bundle", bundle).failed(3)


@pytest.mark.parametrize("name", sorted(Bundle.open(DRAFTER).manifest.files))
def test_a_file_that_is_not_the_manifests(run: Run, card: Path, bundle: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    assert "hash differs" in run("ask", card, "What?", "--bundle", bundle).failed(3)
    (bundle / name).unlink()
    assert name in run("ask", card, "What?", "--bundle", bundle).failed(3)


@pytest.mark.threat("outside")
def test_a_file_outside_the_bundle(run: Run, card: Path, bundle: Path) -> None:
    (bundle.parent / "secret").write_bytes(b"")
    files = Bundle.open(DRAFTER).manifest.files
    for name in ("../secret", "/etc/passwd"):
        change_manifest(bundle, files=files | {name: "0" * 64})
        run("ask", card, "What?", "--bundle", bundle).failed(3)


def test_bundles_of_the_wrong_role(run: Run, card: Path) -> None:
    run("ask", card, "What?", "--bundle", TARGET).failed(3)
    run("edge", "--bundle", TARGET, "--insecure", "--listen", "127.0.0.1:0").failed(3)
    run("cloud", "--bundle", DRAFTER, "--insecure", "--listen", "127.0.0.1:0").failed(3)
