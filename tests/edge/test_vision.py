"""The drafter's vision tower against transformers' own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from cutline.edge.vision import VisionSpan
from cutline.errors import BundleError
from cutline.models.bundle import Bundle, write_manifest


@pytest.mark.parametrize("count", [1, 3])
def test_rows_are_transformers_image_features(bundle: Bundle, reference: Any, count: int) -> None:
    pixels = torch.rand(count, 1, 3, 64, 64, generator=torch.Generator().manual_seed(count)) * 2 - 1
    with torch.inference_mode():
        expected = torch.cat(reference.model.get_image_features(pixels).pooler_output).numpy()
    rows = VisionSpan.open(bundle, "decoder.0", threads=1)(pixels[:, 0].numpy())
    assert rows.shape == (count * 16, 64)
    assert rows.dtype == np.float32
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(rows, expected, atol=1e-4)


def test_a_manifest_of_other_sizes_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle.path, folder)
    image = msgspec.structs.replace(bundle.manifest.image, tokens=4)
    write_manifest(folder, msgspec.structs.replace(bundle.manifest, image=image))
    with pytest.raises(BundleError, match="not of the manifest's sizes"):
        VisionSpan.open(Bundle.open(folder), "decoder.0", threads=1)
