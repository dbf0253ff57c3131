"""Dual encoders against transformers from the same folder: pixels, ids, rows, scores, and every cut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cutline.edge.inference.encoder import Encoder
from cutline.models.encoders.bundle import EncoderBundle
from cutline.models.encoders.tokenizer import TextTokenizer
from cutline.models.images import as_png
from cutline.testing.models.encoders import OriginalEncoder, exported
from cutline.testing.models.random_encoders import KINDS, make_encoder

Made = Callable[[str], tuple[Path, EncoderBundle]]

# Tiny, exact, square, panoramas both ways, odd, one pixel more and less, large.
SIZES = [
    *[(8, 8), (9, 8), (31, 33), (32, 32), (33, 32), (64, 64), (8, 160), (160, 8), (101, 67)],
    *[(67, 101), (640, 480), (333, 1000), (1999, 1501)],
]
TEXTS = ["a photo of a cat", "A person at the GATE!", "Größe, 東京 ☃", "two", "it's  3 now", "x\ny"]


def picture(size: tuple[int, int]) -> Image.Image:
    """Noise on a ramp, so that filters, crops and channels all show."""
    width, height = size
    rng = np.random.default_rng(width * 7919 + height)
    ramp = np.linspace(0, 200, width)[None, :, None] + np.array([0, 20, 40])
    return Image.fromarray((ramp + rng.integers(0, 16, (height, width, 3))).astype(np.uint8))


def off_by(found: Any, expected: Any) -> float:
    """The largest difference, as a share of the largest value."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(
    ("kind", "images"),
    [
        ("clip", {}),
        ("clip", {"size": {"shortest_edge": 41}, "resample": 2}),
        ("clip", {"size": {"height": 50, "width": 47}, "image_mean": [0.1, 0.2, 0.3]}),
        ("clip", {"size": 40, "crop_size": 32, "feature_extractor_type": "CLIPFeatureExtractor"}),
        ("siglip", {}),
        ("siglip", {"resample": 1, "image_std": [0.3, 0.4, 0.6], "do_convert_rgb": True}),
        ("siglip2", {"mean": [0.9, 0.9, 0.9]}),
    ],
)
def test_pixels_have_the_bits_of_transformers(kind: str, images: dict[str, Any], tmp_path: Path) -> None:
    from cutline.models.export.encoders.source import read_encoder

    source = read_encoder(make_encoder(kind, tmp_path, images=images))
    theirs = OriginalEncoder(tmp_path)
    for size in SIZES:
        image = picture(size)
        assert np.array_equal(source.images.preprocess(image), theirs.pixels([image])), size


@pytest.mark.parametrize("kind", KINDS)
def test_texts_have_the_ids_of_transformers(kind: str, encoders: Made) -> None:
    folder, bundle = encoders(kind)
    tokenizer = TextTokenizer.read(bundle.file("tokenizer.json").read_bytes(), bundle.manifest.texts)
    theirs = OriginalEncoder(folder)
    for text in TEXTS:
        assert np.array_equal(tokenizer.encode(text), theirs.ids([text])["input_ids"]), text


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_scores_are_those_of_transformers(kind: str, encoders: Made) -> None:
    """Of several images and texts at once there, of each by itself here: no row depends on its neighbours."""
    folder, bundle = encoders(kind)
    images = [picture(size) for size in SIZES[:9]]
    expected = OriginalEncoder(folder).answer(images, TEXTS)
    encoder = Encoder(bundle, threads=1)
    rows, texts = encoder.embed_images([as_png(image) for image in images]), encoder.embed_texts(TEXTS)
    assert off_by(rows, expected.image_embeds) < 1e-3
    assert off_by(texts, expected.text_embeds) < 1e-3
    assert off_by(encoder.manifest.scores.logits(rows, texts), expected.logits_per_image) < 1e-3
    scores = encoder.classify([as_png(image) for image in images], TEXTS)
    assert off_by(scores, OriginalEncoder(folder).probabilities(images, TEXTS)) < 1e-3
    assert np.ptp(scores) > 0.01  # the model tells them apart, or nothing is compared here


@pytest.mark.parametrize("kind", KINDS)
def test_every_cut_gives_the_uncut_row(kind: str, encoders: Made) -> None:
    """And what crosses before a layer is what transformers' own layer is given."""
    folder, bundle = encoders(kind)
    image = picture((90, 70))
    model, encoder = OriginalEncoder(folder).model, Encoder(bundle, threads=1)
    seen: list[Any] = []
    tower = model.vision_model
    layers = [*tower.encoder.layers]
    hooks = [layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].numpy())) for layer in layers]
    hooks.append(layers[-1].register_forward_hook(lambda _, given, made: seen.append(made.numpy())))
    pixels = torch.from_numpy(OriginalEncoder(folder).pixels([image]))
    with torch.inference_mode():
        features = model.get_image_features(pixels).pooler_output
        expected = features / features.norm(dim=-1, keepdim=True)
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(bundle.manifest.cuts) == len(layers) + 1
    for cut, rows in zip(bundle.manifest.cuts, seen, strict=True):
        crossed = encoder.rows_before(cut, as_png(image))
        assert off_by(crossed, rows) < 1e-3
        assert off_by(encoder.features_of([crossed], cut), expected) < 1e-3


@pytest.mark.parametrize("kind", ["siglip"])
def test_int8_stays_close(kind: str, encoders: Made, tmp_path: Path) -> None:
    folder, whole = encoders(kind)
    small = exported(folder, tmp_path / "bundle", "int8")
    images, texts = [as_png(picture(size)) for size in SIZES[:6]], TEXTS
    ours, exact = Encoder(small, threads=1), Encoder(whole, threads=1)
    for found, expected in (
        (ours.embed_images(images), exact.embed_images(images)),
        (ours.embed_texts(texts), exact.embed_texts(texts)),
    ):
        assert (found * expected).sum(axis=-1).min() > 0.98  # cosines
        assert not np.array_equal(found, expected)
    assert sum(file.stat().st_size for file in small.path.glob("*.data")) < 0.7 * sum(
        file.stat().st_size for file in whole.path.glob("*.data")
    )
