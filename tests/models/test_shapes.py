"""Shapes of published models: their sizes are those that transformers makes of the published settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from cutline.errors import InputError
from cutline.models.export.source import _parameters
from cutline.models.shapes import Shape, known_shapes, load_shape

LAYERS = 2  # instead of all of them, which are alike
SMOL = {"image_size": 512, "patch_size": 16, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
# As published: width, feed-forward, heads, heads of keys, vocabulary.
TEXTS = {
    "smolvlm-256m": (576, 1536, 9, 3, 49280),
    "smolvlm-500m": (960, 2560, 15, 5, 49280),
    "qwen2.5-vl-3b": (2048, 11008, 16, 2, 151936),
    "qwen2.5-vl-7b": (3584, 18944, 28, 4, 152064),
}


def made(name: str) -> Any:
    """The model without weights."""
    width, forward, heads, kv_heads, vocabulary = TEXTS[name]
    text: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": forward,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
    }
    with torch.device("meta"):
        if name.startswith("smolvlm"):
            text |= {"model_type": "llama", "head_dim": 64}
            return SmolVLMForConditionalGeneration(
                SmolVLMConfig(
                    scale_factor=4,
                    image_token_id=1,
                    vision_config=SMOL | {"num_hidden_layers": LAYERS},
                    text_config=text,
                )
            )
        tower = {"depth": LAYERS, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420, "patch_size": 14}
        vision: dict[str, Any] = tower | {"out_hidden_size": width, "window_size": 112, "fullatt_block_indexes": [1]}
        text |= {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
        return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(vision_config=vision, text_config=text))


@pytest.mark.parametrize("name", TEXTS)
def test_a_layer_of_each_kind_has_the_weights_of_the_published_model(name: str) -> None:
    shape = known_shapes()[name]
    image, vision, *_, decoder, head = counted = _parameters(made(name), shape.family)
    assert shape.parameters == {
        "image": image,
        "vision": vision,
        "connector": counted[1 + LAYERS],
        "decoder": decoder,
        "head": head,
    }
    width, _, heads, kv_heads, vocabulary = TEXTS[name]
    spec = shape.decoder
    assert (spec.width, spec.heads, spec.kv_heads, spec.vocabulary) == (width, heads, kv_heads, vocabulary)


def test_every_known_shape_is_held_to_its_model() -> None:
    assert set(known_shapes()) == set(TEXTS)
    assert load_shape("smolvlm-256m") == known_shapes()["smolvlm-256m"]
    assert load_shape("no-such-model") is None


def test_a_shape_is_cut_wherever_an_export_of_it_would_be() -> None:
    from cutline.edge.inference.target_prefix import device_cuts

    shape = known_shapes()["smolvlm-256m"]
    manifest = shape.manifest("it", role="target", precision="fp32")
    assert device_cuts(manifest) == manifest.line.layers[1:]
    assert len(manifest.parameters) == len(manifest.line.layers)


FILE = """
source = "a lab"
family = { kind = "smolvlm", tile = 64, patch = 8, tile_tokens = 16, longest_edge = 64, split = false }
line = { vision = 2, decoder = 2 }
parameters = { image = 1, vision = 2, connector = 3, decoder = 4, head = 5 }
vision = { width = 64, heads = 2 }
decoder = { width = 64, layers = 2, heads = 2, kv_heads = 2, head_dim = 32, vocabulary = 99, context = 512 }
"""


def test_a_shape_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(FILE)
    shape = load_shape(str(file))
    assert isinstance(shape, Shape)
    assert shape.manifest("mine", role="drafter", precision="int8").parameters == (1, 2, 2, 3, 4, 4, 5)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("head = 5", "tail = 5", "`parameters` has"),
        ("layers = 2", "layers = 3", "`line` has 2 layers of the decoder, `decoder` 3"),
        ('source = "a lab"', "", "source"),
        ("vision = 2, decoder", "vision = 0, decoder", "vision"),
        ("head = 5", "head = -5", "parameters"),
        ("source =", "source", ""),
        ('source = "a lab"', "#" * (1 << 20), "larger than 1 MiB"),
    ],
)
def test_a_file_that_is_no_shape_is_refused_in_one_line(tmp_path: Path, old: str, new: str, words: str) -> None:
    file = tmp_path / "mine.toml"
    assert old in FILE
    file.write_text(FILE.replace(old, new, 1))
    with pytest.raises(InputError, match=f"{file} is no shape of a model") as caught:
        load_shape(str(file))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
