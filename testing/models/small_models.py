"""One small model of each family with seeded random weights, as Hugging Face folders: a new family adds one to SMALL.

Their tokenizer is the demo's, with the tokens that the family's published template writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from cutline.models.families import internvl
from cutline.models.families.gemma import gemma3, paligemma
from cutline.models.families.minicpm import minicpmv
from cutline.models.families.mllama import canvas, mllama
from cutline.models.families.qwen import qwenvl
from cutline.models.tools import HERMES
from cutline.testing.models.random_models import Small, Words
from cutline.testing.models.small_gemma4 import GEMMA4_BLOCKS, GEMMA4_MARKERS, GEMMA4_PROCESSOR, gemma4_config
from cutline.testing.models.templates import (
    GEMMA4_TEMPLATE,
    GEMMA_TEMPLATE,
    INTERNVL_TEMPLATE,
    QWEN_TEMPLATE,
    QWEN_TOOLS_TEMPLATE,
)

DELTA: Mapping[str, Any] = {
    "head_dim": 64,
    "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"] * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 32,
}


def _qwen(kind: str, vision: Mapping[str, Any], *, videos: str = "Qwen2VLVideoProcessor", **text: Any) -> Small:
    patch = vision.get("patch_size", 14)
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]} | text.pop("rope", {})
    patches = {"num_heads": 4, "patch_size": patch, "spatial_merge_size": 2, "temporal_patch_size": 2}

    def config(words: Words) -> dict[str, Any]:
        image, start, end = (words[marker] for marker in (qwenvl.IMAGE, qwenvl.START, qwenvl.END))
        return {
            "image_token_id": image,
            "video_token_id": len(words),  # which has no text here
            "vision_start_token_id": start,
            "vision_end_token_id": end,
            "vision_config": {**patches, **vision},
            "text_config": {"rope_parameters": rope, **text},
        }

    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": 16 * patch**2,
        "max_pixels": 256 * patch**2,
        "patch_size": patch,
        "temporal_patch_size": 2,
    }
    films = {"video_processor_type": videos, "size": {"shortest_edge": 4096, "longest_edge": 40_000}}
    markers = (qwenvl.IMAGE, qwenvl.START, qwenvl.END)
    return Small(kind, markers, QWEN_TEMPLATE, config, processor, videos=films)


def _internvl(text: str) -> Small:
    def config(words: Words) -> dict[str, Any]:
        return {
            "image_token_id": words[internvl.IMAGE],
            "image_seq_length": 4,
            "vision_config": {
                "hidden_size": 96,
                "intermediate_size": 160,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "image_size": [64, 64],
                "patch_size": [16, 16],
                "attention_bias": True,
            },
            "text_config": {"model_type": text, "rope_theta": 1e6} | ({"head_dim": 48} if text == "qwen3" else {}),
        }

    processor = {
        "image_processor_type": "GotOcr2ImageProcessorFast",
        "size": {"height": 64, "width": 64},
        "crop_to_patches": False,  # its processor asks for it all the same
        "max_patches": 6,
    }
    markers = (internvl.IMAGE, internvl.START, internvl.END)
    return Small("internvl", markers, INTERNVL_TEMPLATE, config, processor)


SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 16,
    "vision_use_head": False,
}


def _gemma3() -> Small:
    def config(words: Words) -> dict[str, Any]:
        return {
            "image_token_id": words[gemma3.IMAGE],
            "boi_token_id": words[gemma3.START],
            "eoi_token_id": words[gemma3.END],
            "mm_tokens_per_image": 4,
            "vision_config": SIGLIP,
            "text_config": {
                "head_dim": 48,
                "query_pre_attn_scalar": 48,
                "sliding_window": 6,
                "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"] * 2,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            },
        }

    markers = (gemma3.START, gemma3.IMAGE, gemma3.END)
    processor = {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 64, "width": 64}}
    return Small("gemma3", markers, GEMMA_TEMPLATE, config, processor, tokens="pieces")


def _gemma4(windowed: str, *, given: int = 0, standard: bool = False, **text: Any) -> Small:
    config = partial(gemma4_config, windowed=windowed, given=given, standard=standard, **text)
    return Small("gemma4", GEMMA4_MARKERS, GEMMA4_TEMPLATE, config, GEMMA4_PROCESSOR, tokens="pieces")


def _llava_onevision() -> Small:
    pins = [[64 * down, 64 * across] for down in range(1, 4) for across in range(1, 4)]

    def config(words: Words) -> dict[str, Any]:
        return {
            "image_token_id": words["<image>"],
            "image_grid_pinpoints": pins,
            "vision_aspect_ratio": "anyres_max_4",  # so that larger fields are shrunk
            "vision_config": {**SIGLIP, "patch_size": 8},  # thin pictures leave some
            "text_config": {"model_type": "qwen2", "rope_theta": 1e6},
        }

    processor = {
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "size": {"height": 64, "width": 64},
        "image_grid_pinpoints": pins,
    }
    template = INTERNVL_TEMPLATE.replace("<IMG_CONTEXT>", "<image>")
    return Small("llava_onevision", ("<image>",), template, config, processor)


def _lfm2_vl() -> Small:
    def config(words: Words) -> dict[str, Any]:
        return {
            "image_token_id": words["<image>"],
            "projector_hidden_size": 160,
            "vision_config": {
                "model_type": "siglip2_vision_model",
                "hidden_size": 96,
                "intermediate_size": 160,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "num_patches": 16,
                "patch_size": 16,
                "vision_use_head": False,
            },
            "text_config": {
                "model_type": "lfm2",
                "layer_types": ["conv", "conv", "full_attention", "conv"] * 2,
                "block_multiple_of": 32,
                "rope_theta": 1e6,
            },
        }

    processor = {
        "image_processor_type": "Lfm2VlImageProcessorFast",
        "do_resize": False,  # as published, and not read
        "resample": 3,
        "tile_size": 64,
        "min_image_tokens": 4,
        "max_image_tokens": 20,
        "max_tiles": 4,
        "max_pixels_tolerance": 0.75,
    }
    tiles = [f"<|img_row_{row}_col_{col}|>" for row in range(1, 5) for col in range(1, 5)]
    markers = ("<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>", *tiles)
    template = INTERNVL_TEMPLATE.replace("<IMG_CONTEXT>", "<image>")
    return Small("lfm2_vl", markers, template, config, processor)


def _minicpmv() -> Small:
    def config(words: Words) -> dict[str, Any]:
        return {
            "image_token_id": words[minicpmv.IMAGE],
            "insert_layer_id": 1,
            "vision_config": {
                "hidden_size": 96,
                "intermediate_size": 160,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "image_size": 64,
                "patch_size": 8,
            },
            "text_config": {
                "model_type": "qwen3_5_text",
                **DELTA,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
            },
        }

    processor = {
        "image_processor_type": "MiniCPMV4_6ImageProcessor",
        "patch_size": 8,
        "scale_resolution": 64,
        "max_slice_nums": 4,
        "slice_mode": True,
        "use_image_id": True,
    }
    template = INTERNVL_TEMPLATE.replace("<IMG_CONTEXT>", minicpmv.IMAGE)
    return Small("minicpmv4_6", minicpmv.MiniCPMV.markers, template, config, processor)


def _paligemma(text: str, **more: Any) -> Small:
    def config(words: Words) -> dict[str, Any]:
        return {
            "image_token_id": words[paligemma.IMAGE],
            "projection_dim": 128,
            "hidden_size": 128,
            "vision_config": {**SIGLIP, "projection_dim": 128},
            "text_config": {
                "model_type": text,
                "head_dim": 48,
                "hidden_activation": "gelu_pytorch_tanh",
                "rope_theta": 1e4,
                **more,
            },
        }

    processor = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 64, "width": 64}, "resample": 3}
    return Small("paligemma", (paligemma.IMAGE,), None, config, processor, tokens="pieces")


def _git() -> Small:
    vision = {
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 16,
    }

    def config(words: Words) -> dict[str, Any]:
        del words
        return {"vision_config": vision, "text_config": {"num_key_value_heads": None}}

    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 64},
        "crop_size": {"height": 64, "width": 64},
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    return Small("git", (), None, config, processor, tokens="words", flat=True)


def _mllama() -> Small:
    ratios = [list(one) for one in canvas.arrangements(3)]

    def config(words: Words) -> dict[str, Any]:
        return {
            "image_token_index": words[mllama.IMAGE],
            "vision_config": {
                "hidden_size": 96,
                "intermediate_size": 160,
                "num_hidden_layers": 3,
                "num_global_layers": 2,
                "attention_heads": 4,
                "image_size": 64,
                "patch_size": 16,
                "max_num_tiles": 3,
                "supported_aspect_ratios": ratios,
                "intermediate_layers_indices": [0, 2],
                "vision_output_dim": 96 * 3,
            },
            "text_config": {"cross_attention_layers": [1, 4, 5], "rope_theta": 5e5},
        }

    processor = {
        "image_processor_type": "MllamaImageProcessor",
        "size": {"height": 64, "width": 64},
        "max_image_tiles": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    template = INTERNVL_TEMPLATE.replace("<IMG_CONTEXT>\n", mllama.IMAGE)
    return Small("mllama", (), template, config, processor, unchosen=mllama.IMAGE)


_WIDE = {"depth": 4, "hidden_size": 96, "intermediate_size": 160, "out_hidden_size": 128}
SMALL: Mapping[str, Small] = {
    "qwen2-vl": _qwen("qwen2_vl", {"depth": 3, "embed_dim": 96, "hidden_size": 128, "mlp_ratio": 2}),
    "qwen2.5-vl": _qwen("qwen2_5_vl", {**_WIDE, "window_size": 112, "fullatt_block_indexes": [1, 3]}),
    "qwen3-vl": _qwen(
        "qwen3_vl",
        {**_WIDE, "patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 2, 3]},
        head_dim=48,
        rope={"mrope_section": [8, 8, 8], "mrope_interleaved": True},
        videos="Qwen3VLVideoProcessor",
    ),
    "qwen3.5": _qwen(
        "qwen3_5",
        {**_WIDE, "patch_size": 16, "num_position_embeddings": 64},
        **DELTA,
        rope={"mrope_section": [4, 2, 2], "mrope_interleaved": True, "partial_rotary_factor": 0.25},
    ),
    "internvl-qwen2": _internvl("qwen2"),
    "internvl-qwen3": _internvl("qwen3"),
    "gemma3": _gemma3(),
    "gemma4": _gemma4("wfwfwf", given=16, num_kv_shared_layers=2, use_double_wide_mlp=True),
    "gemma4-large": _gemma4("wwf", standard=True, attention_k_eq_v=True, num_global_key_value_heads=1, **GEMMA4_BLOCKS),
    "gemma4-experts": _gemma4(
        "wf", enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=64, **GEMMA4_BLOCKS
    ),
    "llava-onevision": _llava_onevision(),
    "git": _git(),
    "lfm2-vl": _lfm2_vl(),
    "minicpm-v": _minicpmv(),
    "mllama": _mllama(),
    "paligemma": _paligemma("gemma"),
    "paligemma2": _paligemma(
        "gemma2",
        query_pre_attn_scalar=48,
        sliding_window=8,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    ),
}

QWEN_TOOLS = replace(SMALL["qwen2.5-vl"], template=QWEN_TOOLS_TEMPLATE, plain=(HERMES.begin, HERMES.end))
