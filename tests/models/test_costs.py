"""What layers take, against torch's own count of operations and of weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText
from transformers.models.qwen3_5 import modeling_qwen3_5

from cutline.core.wire import Wire, bytes_per_row
from cutline.demo.bundles import TARGET
from cutline.models.bundle import Bundle, Manifest
from cutline.models.costs import Sizes, layer_costs, request_sizes

TOKENS = 40


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return Bundle.open(TARGET).manifest


@pytest.fixture(scope="module")
def sizes(manifest: Manifest) -> Sizes:
    return request_sizes(manifest, [(0, 0)], TOKENS)


@pytest.fixture(scope="module")
def counted(manifest: Manifest) -> dict[str, int]:
    """Operations that torch counts in each module for one image and a prompt."""
    # Eager, as the counter does not know every kernel of attention.
    model: Any = AutoModelForImageTextToText.from_pretrained(
        TARGET, local_files_only=True, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokens = [manifest.image_token] * manifest.family.tokens((0, 0)) + [9] * TOKENS
    with torch.inference_mode(), FlopCounterMode(depth=6, display=False) as counter:
        model(input_ids=torch.tensor([tokens[:TOKENS]]), pixel_values=torch.zeros(1, 1, 3, 64, 64), use_cache=False)
    return {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}


def counted_of(counted: dict[str, int], name: str) -> int:
    return next(count for module, count in counted.items() if module.endswith(name))


def test_operations_are_those_that_torch_counts(manifest: Manifest, sizes: Sizes, counted: dict[str, int]) -> None:
    layers = {layer.name: layer for layer in layer_costs(manifest)}
    assert sizes == Sizes(patches=64, seen=64, image_tokens=16, tokens=TOKENS)
    assert sizes.tiles == 1
    for index in range(manifest.line.vision):
        expected = counted_of(counted, f"vision_model.encoder.layers.{index}")
        assert layers[f"vision.{index}"].prefill_flops(sizes) == pytest.approx(expected, rel=0.02)
    expected = counted_of(counted, "model.connector")
    assert layers["connector"].prefill_flops(sizes) == pytest.approx(expected, rel=0.02)
    for index in range(manifest.line.decoder):
        layer = layers[f"decoder.{index}"]
        # Torch counts a whole square of attention; a prompt's rows see half of it.
        expected = counted_of(counted, f"text_model.layers.{index}")
        assert layer.flops(TOKENS, TOKENS) == pytest.approx(expected, rel=0.02)
        halved = 4 * layer.attends * TOKENS * (TOKENS - 1) / 2
        assert layer.prefill_flops(sizes) == pytest.approx(expected - halved, rel=0.02)


def test_a_layer_without_attention_costs_its_weights_and_its_recurrence(targets: Callable[[str], Bundle]) -> None:
    """As torch counts it, but for the recurrence, which is no product of matrices where it goes a row at a time."""
    bundle = targets("qwen3.5")
    layers = {layer.name: layer for layer in layer_costs(bundle.manifest)}
    model: Any = AutoModelForImageTextToText.from_pretrained(
        bundle.path, local_files_only=True, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with (
        torch.inference_mode(),
        patch.object(
            modeling_qwen3_5, "torch_chunk_gated_delta_rule", modeling_qwen3_5.torch_recurrent_gated_delta_rule
        ),
        FlopCounterMode(depth=6, display=False) as counter,
    ):
        model(input_ids=torch.full((1, TOKENS), 9), use_cache=False)
    counted = {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}
    (heads, keys, values), states = (4, 16, 32), 192 * 3
    for index in range(bundle.manifest.line.decoder):
        layer, expected = layers[f"decoder.{index}"], counted_of(counted, f"language_model.layers.{index}")
        full = index % 4 == 2
        assert layer.flops(TOKENS, TOKENS) == pytest.approx(
            expected + (0 if full else TOKENS * 6 * heads * keys * values), rel=0.02
        )
        assert layer.state_bytes == (0 if full else 4 * (heads * keys * values + states))
        assert layer.kv_bytes_per_token == (4 * 2 * 2 * 64 if full else 0)


def test_a_tower_that_makes_one_row_of_several_costs_what_torch_counts(targets: Callable[[str], Bundle]) -> None:
    """Behind the merger, which belongs to the layer before it, a quarter of the rows are worked on, and cross."""
    bundle = targets("minicpm-v")
    manifest = bundle.manifest
    image = manifest.family.example(0)
    sizes = request_sizes(manifest, [image.grid], TOKENS)
    model: Any = AutoModelForImageTextToText.from_pretrained(
        bundle.path, local_files_only=True, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    given = {name: torch.from_numpy(value) for name, value in manifest.family.as_given([image]).items()}
    with torch.inference_mode(), FlopCounterMode(depth=6, display=False) as counter:
        model.base_model.get_image_features(**given)
    counted = {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}
    layers = {layer.name: layer for layer in layer_costs(manifest)}
    for index in range(manifest.line.vision):
        merger = counted_of(counted, ".vit_merger") if index == 1 else 0
        expected = counted_of(counted, f"VisionModel.encoder.layers.{index}") + merger
        assert layers[f"vision.{index}"].prefill_flops(sizes) == pytest.approx(expected, rel=0.03)
    expected = counted_of(counted, "Merger.mlp.0")
    assert layers["connector"].prefill_flops(sizes) == pytest.approx(expected, rel=0.02)
    rows = {cut: layers[cut].boundary(sizes) for cut in manifest.line.image_cuts[1:]}
    patches, tokens = len(image.values), manifest.family.tokens(image.grid)
    assert tokens == patches // 16
    for cut, width in (("vision.1", 96), ("vision.2", 96), ("connector", 96), ("decoder.0", 128)):
        count = {"vision.1": patches, "decoder.0": tokens}.get(cut, patches // 4)
        assert rows[cut] == (count, width)
        assert manifest.family.crossing(manifest.line, cut, image.grid) == count


def test_the_sizes_of_several_images_or_none(manifest: Manifest) -> None:
    split = msgspec.structs.replace(
        manifest, family=msgspec.structs.replace(manifest.family, longest_edge=256, split=True)
    )
    sizes = request_sizes(split, [(1, 2), (0, 0)], 90)
    assert sizes == Sizes(images=2, patches=4 * 64, seen=64, image_tokens=4 * 16, tokens=90)
    assert sizes.tiles == 4
    none = request_sizes(split, [], 9)
    assert none == Sizes(images=0, patches=0, seen=0, image_tokens=0, tokens=9)
    assert none.tiles == 0


def test_the_layers_are_those_of_the_line(manifest: Manifest, sizes: Sizes) -> None:
    layers = layer_costs(manifest)
    assert tuple(layer.name for layer in layers) == manifest.line.layers
    assert tuple(layer.parameters for layer in layers) == manifest.parameters
    assert Counter(layer.unit for layer in layers) == {"patch": 5, "image token": 1, "token": 4, "answer": 1}
    for layer in layers:
        later = layer.name.startswith("decoder") or layer.name == "head"
        assert (layer.token_flops(50) > 0) == later
    decoder = layers[-2]
    assert decoder.token_flops(51) - decoder.token_flops(50) == 4 * manifest.decoder.width


def test_a_cache_token_is_a_key_and_a_value_of_every_head(manifest: Manifest) -> None:
    spec = manifest.decoder
    pair = np.zeros((2, spec.kv_heads, spec.head_dim), np.float32)
    assert {layer.kv_bytes_per_token for layer in layer_costs(manifest)} == {0, pair.nbytes}


@pytest.mark.parametrize("wire", Wire)
def test_what_crosses_each_cut(manifest: Manifest, sizes: Sizes, wire: Wire) -> None:
    for layer in layer_costs(manifest):
        shape = layer.boundary(sizes)
        if layer.name == "image":
            assert shape is None
            assert layer.boundary_bytes(sizes, wire) is None
            continue
        in_tower = layer.name.startswith("vision") or layer.name == "connector"
        rows = 64 if in_tower else 16 if layer.name == "decoder.0" else TOKENS
        assert shape == (rows, 128)
        assert layer.boundary_bytes(sizes, wire) == rows * bytes_per_row(wire, 128)
