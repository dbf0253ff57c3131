"""An encoder on a device: what it takes, and what it refuses in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

import cutline
from cutline.edge.inference.encoder import Encoder, filled
from cutline.errors import BundleError, ImageError, InputError, PromptError
from cutline.models.encoders.bundle import EncoderBundle
from cutline.models.images import as_png

Made = Callable[[str], tuple[Path, EncoderBundle]]
PICTURE = as_png(Image.linear_gradient("L").convert("RGB"))


@pytest.fixture(scope="module", params=["clip", "siglip"])
def encoder(request: pytest.FixtureRequest, encoders: Made) -> Encoder:
    return Encoder(encoders(request.param)[1].path, threads=1)


def test_rows_have_unit_length_and_scores_are_probabilities(encoder: Encoder) -> None:
    rows, texts = encoder.embed_images([PICTURE] * 2), encoder.embed_texts(["a cat", "a dog", "a cat"])
    assert rows.shape == (2, encoder.manifest.dimensions)
    assert texts.shape == (3, encoder.manifest.dimensions)
    for made in (rows, texts):
        assert np.linalg.norm(made, axis=1) == pytest.approx(1.0, abs=1e-5)
    assert np.array_equal(texts[0], texts[2])
    scores = encoder.classify([PICTURE], ["a cat", "a dog"])
    assert np.array_equal(scores, encoder.scores(rows[:1], texts[:2]))
    assert ((scores > 0) & (scores < 1)).all()
    if encoder.manifest.scores.kind == "softmax":
        assert scores.sum() == pytest.approx(1.0, abs=1e-5)


def test_a_template_surrounds_every_text(encoder: Encoder) -> None:
    plain = encoder.classify([PICTURE], ["a photo of a cat", "a photo of a dog"])
    assert np.array_equal(encoder.classify([PICTURE], ["cat", "dog"], template="a photo of a {}"), plain)
    for template in ("a photo", "{} {}"):
        with pytest.raises(InputError, match=r"no single \{\}"):
            filled(template, ["cat"])


def test_nothing_gives_no_rows(encoder: Encoder) -> None:
    assert encoder.embed_images([]).shape == (0, encoder.manifest.dimensions)
    assert encoder.embed_texts([]).shape == (0, encoder.manifest.dimensions)
    with pytest.raises(InputError, match="no text"):
        encoder.classify([PICTURE], [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (" \n", "is empty"),
        ("\ud800", "no characters|not characters"),
        ("x" * 9000, "9000 characters"),
        ("x y " * 40, "tokens, and"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused(text: str, words: str, encoder: Encoder) -> None:
    with pytest.raises(PromptError, match=words):
        encoder.embed_texts([text])


@pytest.mark.parametrize("special", ["<|endoftext|>", "<|startoftext|>", "</s>", "<pad>"])
def test_a_text_has_no_special_tokens(special: str, encoder: Encoder) -> None:
    """It is read as it stands: else a text could end before its end."""
    rules, tokenizer = encoder.manifest.texts, encoder._tokenizer
    ids = tokenizer.encode(f"a {special} b")[0].tolist()
    while ids[-1] == rules.padding:
        ids.pop()
    body = ids if rules.padding is not None else ids[1:-1]
    assert len(body) > 4
    assert tokenizer._tokenizer.token_to_id(special) not in body


def test_what_crosses_is_checked(encoder: Encoder) -> None:
    rows = encoder.rows_before("vision.1", PICTURE)
    assert rows.shape == (1, encoder.manifest.patches, encoder.manifest.width)
    spoiled = rows.copy()
    spoiled[0, 0, 0] = np.nan
    bad: Any
    for bad in (rows[:, 1:], rows.astype(np.float64), spoiled):
        with pytest.raises(InputError, match=r"what crosses vision\.1"):
            encoder.features_of([bad], "vision.1")
    for cut in ("vision.9", "decoder.0", "image", "../x"):
        with pytest.raises(InputError, match="has no cut"):
            encoder.rows_before(cut, PICTURE)


def test_an_image_that_is_none_is_refused(encoder: Encoder) -> None:
    with pytest.raises(ImageError):
        encoder.classify([b"no image"], ["cat"])


def test_graphs_of_other_sizes_are_refused(encoder: Encoder) -> None:
    """A manifest says of what sizes they are."""
    manifest = encoder.manifest
    changed = {
        "dimensions": msgspec.structs.replace(manifest, dimensions=manifest.dimensions + 1),
        "width": msgspec.structs.replace(manifest, width=manifest.width + 1),
    }
    for name, other in changed.items():
        spoiled = Encoder(EncoderBundle(encoder.bundle.path, other), threads=1)
        with pytest.raises(BundleError, match="not of the manifest's sizes"):
            spoiled.embed_texts(["a cat"]) if name == "dimensions" else spoiled.rows_before("vision.1", PICTURE)


def test_it_is_at_the_front_door() -> None:
    assert cutline.Encoder is Encoder
    assert "Encoder" in dir(cutline)
    assert sys.modules["cutline.edge.inference.encoder"].Encoder is Encoder
