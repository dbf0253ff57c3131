"""A family that another package ships: the page's worked example, installed as an entry point, cut and compared."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cutline.errors import BundleError, InputError
from cutline.models.bundle import read_manifest
from cutline.models.export.source import read_source
from cutline.models.families import every_family
from cutline.testing.models.comparison import compare_cuts, small_target
from cutline.testing.models.random_models import Small, Words
from cutline.testing.models.small_models import SIGLIP
from cutline.testing.models.templates import INTERNVL_TEMPLATE

PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/new-family.md"


def config(words: Words) -> dict[str, Any]:
    return {
        "image_token_id": words["<image>"],
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "vision_config": SIGLIP,
        "text_config": {"model_type": "qwen2", "rope_theta": 1e6},
    }


LLAVA = Small(
    "llava",
    ("<image>",),
    INTERNVL_TEMPLATE.replace("<IMG_CONTEXT>", "<image>"),
    config,
    {"image_processor_type": "SiglipImageProcessor", "size": {"height": 64, "width": 64}, "resample": 3},
)


def ship(folder: Path, point: str, code: str) -> None:
    """A package that is installed in `folder`."""
    folder.mkdir(exist_ok=True)
    (folder / "llava_family.py").write_text(code)
    info = folder / "llava_family-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llava-family\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[cutline.families]\n{point}\n")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the page's example is installed, as the page says."""
    code, toml = re.findall(r"```(?:python|toml)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (name, where) = re.search(r'(\w+) = "([^"]+)"', toml).groups()  # type: ignore[union-attr]
    ship(tmp_path / "site", f"{name} = {where}", code)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield tmp_path / "site"
    sys.modules.pop("llava_family", None)


def test_the_pages_example_is_exported_and_cut(installed: Path, tmp_path: Path) -> None:
    assert [family.__name__ for family in every_family()][-1] == "Llava"
    bundle = small_target("llava", tmp_path, models={"llava": LLAVA})
    assert type(read_manifest(bundle.path).family).__name__ == "Llava"
    cuts = ("image", "vision.0", "vision.2", "connector", "decoder.0", "decoder.3", "head")
    compared = list(compare_cuts(bundle, cuts, steps=8))
    assert len(compared) == 2 * len(cuts)
    assert [one for one in compared if not one.holds] == []
    (installed / "llava_family-1.0.dist-info/entry_points.txt").write_text("")
    with pytest.raises(BundleError, match="family 'llava', which is not installed"):
        read_manifest(bundle.path)


@pytest.mark.parametrize(
    ("point", "code", "said"),
    [
        ("llava = llava_family:Llava", "raise RuntimeError('no luck')", r"llava .* does not load \(no luck\)"),
        ("llava = llava_family:Llava", "Llava = 5", "is no family with the tag llava"),
        ("llava = nowhere:Llava", "", "does not load"),
    ],
)
def test_a_family_that_does_not_load_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, code: str, said: str
) -> None:
    ship(tmp_path / "site", point, code)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    LLAVA.write(tmp_path / "hf")
    with pytest.raises(InputError, match=said):
        read_source(tmp_path / "hf")
    sys.modules.pop("llava_family", None)


def test_without_it_the_folder_is_refused(tmp_path: Path) -> None:
    LLAVA.write(tmp_path)
    with pytest.raises(InputError, match="of the kind llava; supported are smolvlm"):
        read_source(tmp_path)
