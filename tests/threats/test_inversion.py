"""The attack itself: a picture computed back from what crosses the first cut, by the published weights alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import load_file

from cutline.models.bundle import Bundle, span_file
from cutline.models.images import decode_image


@pytest.mark.threat("inversion")
def test_what_crosses_at_the_patches_is_the_picture(bundle: Bundle, honest: Any) -> None:
    """Which is why `image_must_stay` refuses that cut too: least squares, no training, no other picture seen."""
    pixels = bundle.manifest.family.preprocess(decode_image(honest.image)).values
    session = onnxruntime.InferenceSession(bundle.file(span_file("vision.0")))
    rows = session.run(None, {session.get_inputs()[0].name: pixels})[0].reshape(-1, bundle.manifest.vision.width)

    weights = load_file(bundle.file("model.safetensors"))
    place = "model.vision_model.embeddings."
    kernel, bias = weights[place + "patch_embedding.weight"], weights[place + "patch_embedding.bias"]
    known = rows - bias - weights[place + "position_embedding.weight"]
    patches = known @ np.linalg.pinv(kernel.reshape(len(kernel), -1)).T
    side, patch = pixels.shape[-1], kernel.shape[-1]
    count = side // patch
    found = patches.reshape(count, count, 3, patch, patch).transpose(2, 0, 3, 1, 4).reshape(3, side, side)

    likeness = np.corrcoef(found.ravel(), pixels[0].ravel())[0, 1]
    assert likeness > 0.9
