"""Shapes of published models: their sizes are those that transformers makes of the published settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from cutline.edge.inference.target_prefix import device_cuts
from cutline.errors import InputError
from cutline.models.export.source import _parameters
from cutline.models.families.layer_state import KEYS_VALUES
from cutline.models.shapes import Shape, known_shapes, load_shape

LAYERS = 2  # instead of all of them, which are alike; as many as there are taps of a tower
SMOL = {"image_size": 512, "patch_size": 16, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "vision_use_head": False,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "patch_size": 14,
}
# As published: width, feed-forward, heads, heads of keys, vocabulary.
TEXTS = {
    "smolvlm-256m": (576, 1536, 9, 3, 49280),
    "smolvlm-500m": (960, 2560, 15, 5, 49280),
    "qwen2.5-vl-3b": (2048, 11008, 16, 2, 151936),
    "qwen2.5-vl-7b": (3584, 18944, 28, 4, 152064),
    "qwen3-vl-2b": (2048, 6144, 16, 8, 151936),
    "qwen3-vl-8b": (4096, 12288, 32, 8, 151936),
    "git-base": (768, 3072, 12, 12, 30522),
    "gemma3-4b": (2560, 10240, 8, 4, 262208),
    "paligemma-3b": (2048, 16384, 8, 1, 257216),
}


def parts(name: str, width: int) -> tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]:
    """transformers' kind, and what is published of the whole, its tower and its decoder beside the counts."""
    if name.startswith("smolvlm"):
        whole: dict[str, Any] = {"scale_factor": 4, "image_token_id": 1}
        return "smolvlm", whole, SMOL | {"num_hidden_layers": LAYERS}, {"model_type": "llama", "head_dim": 64}
    if name.startswith("qwen2.5"):
        tower: dict[str, Any] = {
            "depth": LAYERS,
            "hidden_size": 1280,
            "num_heads": 16,
            "intermediate_size": 3420,
            "patch_size": 14,
        }
        windows: dict[str, Any] = {"out_hidden_size": width, "window_size": 112, "fullatt_block_indexes": [1]}
        return "qwen2_5_vl", {}, tower | windows, {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
    if name.startswith("qwen3"):
        sizes = {"hidden_size": 1024, "intermediate_size": 4096} if "2b" in name else {}
        # Three taps have three mergers; the weights of a layer do not depend on where they are.
        tower = {**sizes, "depth": 3, "num_heads": 16, "out_hidden_size": width, "deepstack_visual_indexes": [0, 1, 2]}
        rope = {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True}
        return "qwen3_vl", {}, tower, {"head_dim": 128, "num_hidden_layers": 3, "rope_scaling": rope}
    if name.startswith("git"):
        tower = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "patch_size": 16}
        return "git", {}, tower | {"image_size": 224, "num_hidden_layers": LAYERS}, {}
    tower = SIGLIP | {"num_hidden_layers": LAYERS}
    if name.startswith("gemma3"):
        return "gemma3", {"mm_tokens_per_image": 256}, tower | {"image_size": 896}, {"head_dim": 256}
    whole = {"projection_dim": width, "hidden_size": width}
    return "paligemma", whole, tower | {"image_size": 224, "projection_dim": width}, {"model_type": "gemma"}


def made(name: str) -> Any:
    """The model without weights."""
    width, forward, heads, kv_heads, vocabulary = TEXTS[name]
    kind, whole, tower, more = parts(name, width)
    text: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": forward,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        **more,
    }
    configured: Any = CONFIG_MAPPING[kind]
    inside = text if name.startswith("git") else {"text_config": text}
    config = configured(vision_config=tower, **inside, **whole)
    model: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    with torch.device("meta"):
        return model(config)


@pytest.mark.parametrize("name", TEXTS)
def test_a_layer_of_each_kind_has_the_weights_of_the_published_model(name: str) -> None:
    shape = known_shapes()[name]
    model = made(name)
    image, vision, *_, decoder, head = counted = _parameters(model, shape.family)
    assert shape.parameters == {
        "image": image,
        "vision": vision,
        "connector": counted[1 + len(shape.family.parts.tower_names(model.base_model))],
        "decoder": decoder,
        "head": head,
    }
    width, _, heads, kv_heads, vocabulary = TEXTS[name]
    spec = shape.decoder
    assert (spec.width, spec.heads, spec.kv_heads, spec.vocabulary) == (width, heads, kv_heads, vocabulary)


GEMMA4 = {  # as published of E2B's decoder
    "hidden_size": 1536,
    "intermediate_size": 6144,
    "num_hidden_layers": 35,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "global_head_dim": 512,
    "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7,
    "num_kv_shared_layers": 20,
    "use_double_wide_mlp": True,
    "hidden_size_per_layer_input": 256,
}


def test_layers_that_are_not_alike_have_the_weights_of_the_published_model() -> None:
    shape = known_shapes()["gemma4-e2b"]
    config = CONFIG_MAPPING["gemma4"](text_config=GEMMA4, vision_config={"use_clipped_linears": True})
    with torch.device("meta"):
        counted = _parameters(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)](config), shape.family)
    manifest = shape.manifest("it", role="target", precision="fp32")
    assert manifest.parameters == counted
    assert device_cuts(manifest)[-1] == "decoder.13"
    sizes = {"image": 1, "vision": 1, "connector": 1, "decoder": (2, 2), "head": 1}
    with pytest.raises(ValueError, match="2 numbers for decoder"):
        msgspec.structs.replace(shape, parameters=sizes).__post_init__()


DELTA = {
    "head_dim": 256,
    "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 8,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 16,
    "linear_value_head_dim": 128,
    "vocab_size": 248320,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
}
SMALL_DELTA = DELTA | {
    "hidden_size": 1024,
    "intermediate_size": 3584,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "layer_types": DELTA["layer_types"][:24],  # type: ignore[index]
}
SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
LFM2_FULL = {2, 5, 8, 10, 12, 14}
# As published, of models whose layers are not all alike: transformers' kind, the whole, tower and decoder.
UNLIKE: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "qwen3.5-0.8b": (
        "qwen3_5",
        {},
        {"depth": 12, "hidden_size": 768, "intermediate_size": 3072, "num_heads": 12, "out_hidden_size": 1024},
        SMALL_DELTA,
    ),
    "qwen3.5-4b": (
        "qwen3_5",
        {},
        {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "out_hidden_size": 2560},
        DELTA
        | {
            "hidden_size": 2560,
            "intermediate_size": 9216,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "linear_num_value_heads": 32,
        },
    ),
    "lfm2-vl-1.6b": (
        "lfm2_vl",
        {"projector_hidden_size": 2048, "projector_use_layernorm": False, "downsample_factor": 2},
        SO400M | {"model_type": "siglip2_vision_model", "num_patches": 256, "patch_size": 16, "vision_use_head": False},
        {
            "model_type": "lfm2",
            "hidden_size": 2048,
            "intermediate_size": 12288,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 65536,
            "layer_types": ["full_attention" if at in LFM2_FULL else "conv" for at in range(16)],
        },
    ),
    "minicpm-v-4.6": (
        "minicpmv4_6",
        {"insert_layer_id": 6},
        SO400M | {"image_size": 980, "patch_size": 14},
        SMALL_DELTA | {"model_type": "qwen3_5_text", "vocab_size": 248094},
    ),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_every_layer_has_the_weights_of_the_published_model(name: str) -> None:
    kind, whole, tower, text = UNLIKE[name]
    configured: Any = CONFIG_MAPPING[kind]
    config = configured(vision_config=tower, text_config=text, **whole)
    of: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    with torch.device("meta"):
        model = of(config)
    shape = known_shapes()[name]
    counted = _parameters(model, shape.family)
    assert shape.manifest(name, role="target", precision="fp32").parameters == counted
    spec, sizes = shape.decoder, config.text_config
    assert (spec.width, spec.heads, spec.kv_heads, spec.vocabulary) == (
        sizes.hidden_size,
        sizes.num_attention_heads,
        sizes.num_key_value_heads,
        sizes.vocab_size,
    )
    assert [shape.family.keeps(layer) == KEYS_VALUES for layer in range(spec.layers)] == [
        one == "full_attention" for one in sizes.layer_types
    ]


def test_every_known_shape_is_held_to_its_model() -> None:
    assert set(known_shapes()) == {*TEXTS, *UNLIKE, "gemma4-e2b"}
    assert load_shape("smolvlm-256m") == known_shapes()["smolvlm-256m"]
    assert load_shape("no-such-model") is None


def test_a_shape_is_cut_wherever_an_export_of_it_would_be() -> None:
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
