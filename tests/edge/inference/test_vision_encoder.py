"""Vision spans on ONNX Runtime against transformers' own towers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from cutline.edge.inference.vision_encoder import VisionSpan
from cutline.errors import BundleError
from cutline.models.bundle import Bundle, write_manifest
from cutline.testing.models.comparison import Whole, seeded_prompts


@pytest.mark.parametrize("count", [1, 3])
def test_rows_are_transformers_image_features(bundle: Bundle, reference: Any, count: int) -> None:
    pixels = torch.rand(count, 1, 3, 64, 64, generator=torch.Generator().manual_seed(count)) * 2 - 1
    with torch.inference_mode():
        expected = torch.cat(reference.model.get_image_features(pixels).pooler_output).numpy()
    rows = VisionSpan.open(bundle, "decoder.0", threads=1)(pixels[:, 0].numpy(), [(0, 0)] * count)
    assert rows.shape == (count * 16, 64)
    assert rows.dtype == np.float32
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(rows, expected, atol=1e-4)


def test_images_of_any_size_cross_every_cut_as_in_transformers(qwen: Bundle) -> None:
    """Two images of different grids: windows that are whole and windows that are not."""
    prompt = seeded_prompts(qwen.manifest)[1]
    states, _ = Whole(qwen).run(prompt)
    pixels, grids = np.concatenate([image.values for image in prompt.images]), [image.grid for image in prompt.images]
    assert len(set(grids)) == 2
    for cut in qwen.manifest.line.image_cuts[1:]:
        rows = VisionSpan.open(qwen, cut, threads=1)(pixels, grids)
        assert rows.shape == states[cut].shape
        assert np.abs(rows - states[cut]).max() <= 1e-4 * np.abs(states[cut]).max(), cut


def test_without_images_nothing_crosses(bundle: Bundle, qwen: Bundle) -> None:
    for one in (bundle, qwen):
        rows = VisionSpan.open(one, "decoder.0", threads=1)(np.empty((0, 1), np.float32), [])
        assert rows.shape == (0, one.manifest.decoder.width)


@pytest.mark.parametrize(
    ("which", "changes"), [("bundle", {"tile_tokens": 4}), ("bundle", {"tile": 32}), ("qwen", {"tower_head": 12})]
)
def test_a_manifest_of_other_sizes_is_refused(
    request: pytest.FixtureRequest, tmp_path: Path, which: str, changes: dict[str, int]
) -> None:
    bundle: Bundle = request.getfixturevalue(which)
    folder = tmp_path / "bundle"
    shutil.copytree(bundle.path, folder)
    family = msgspec.structs.replace(bundle.manifest.family, **changes)
    write_manifest(folder, msgspec.structs.replace(bundle.manifest, family=family))
    with pytest.raises(BundleError, match="not of the manifest's sizes"):
        VisionSpan.open(Bundle.open(folder), "decoder.0", threads=1)
