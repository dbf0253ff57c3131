"""Models of published shapes with seeded random weights, as Hugging Face folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from cutline.demo.bundles import TARGET
from cutline.demo.tokenizer import END, PAD, START
from cutline.models.export.quiet import quiet
from cutline.models.families.qwen import QwenVL
from cutline.models.families.smolvlm import IMAGE
from cutline.models.prompt import TEMPLATE
from cutline.models.vocabulary import TOKENIZER

QWEN_END = "<|im_end|>"

# Of SmolVLM, whose special tokens a tokenizer of `write_text` then has.
PLAIN_TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] }}: \
{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}\
{% endfor %}<end_of_utterance>{% endfor %}"""

# That of Qwen2.5-VL, without what it has for videos.
QWEN_TEMPLATE = """{% set image_count = namespace(value=0) %}{% for message in messages %}\
{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}{% for content in message['content'] %}\
{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}\
{% set image_count.value = image_count.value + 1 %}\
{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>\
{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def make_smolvlm_256m(
    folder: Path, *, dtype: torch.dtype = torch.bfloat16, longest_edge: int = 2048, depth: tuple[int, int] = (12, 30)
) -> None:
    """A folder like SmolVLM-256M-Instruct's: its shape and image processing, with the demo's tokenizer and template.

    The vocabulary is as large as the published one; most of its tokens have no text. With a `longest_edge` of 512,
    every image is one tile. `depth` counts the layers of tower and decoder.
    """
    words = Tokenizer.from_file(str(TARGET / TOKENIZER)).get_vocab()
    special: dict[str, Any] = {
        "pad_token_id": words[PAD],
        "bos_token_id": words[START],
        "eos_token_id": words[END],
    }
    config = SmolVLMConfig(
        image_token_id=words[IMAGE],
        scale_factor=4,
        tie_word_embeddings=False,
        **special,
        vision_config={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": depth[0],
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": 49280,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": depth[1],
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 64,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100000.0,
            "tie_word_embeddings": False,
            **special,
        },
    )
    _save(seeded(SmolVLMForConditionalGeneration, config), dtype, folder)
    for name in (TOKENIZER, TEMPLATE):
        shutil.copyfile(TARGET / name, folder / name)
    processor = {
        "do_image_splitting": True,
        "size": {"longest_edge": longest_edge},
        "max_image_size": {"longest_edge": 512},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def make_qwen_small(folder: Path, *, kind: str = "qwen2_5_vl") -> None:
    """A folder like that of a model of Qwen, `qwen2_vl`, `qwen2_5_vl` or `qwen3_vl`, but much smaller.

    Its tokenizer is the demo's, with the tokens that the published template writes.
    """
    tokenizer = Tokenizer.from_file(str(TARGET / TOKENIZER))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (*QwenVL.markers, QWEN_END)])
    words = tokenizer.get_vocab()
    special: dict[str, Any] = {
        "pad_token_id": words[PAD],
        "bos_token_id": words[START],
        "eos_token_id": words[QWEN_END],
    }
    image, start, end = (words[marker] for marker in QwenVL.markers)
    vision, rope = _QWEN_VISION[kind], {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}
    text = {
        "vocab_size": len(words) + 1,  # the token of a video has no text here
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "rope_parameters": rope,
        **special,
    }
    if kind == "qwen3_vl":
        text |= {"head_dim": 48, "rope_parameters": rope | {"mrope_section": [8, 8, 8], "mrope_interleaved": True}}
    configured: Any = CONFIG_MAPPING[kind]
    config = configured(
        image_token_id=image,
        video_token_id=len(words),
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=False,
        vision_config=vision,
        text_config=text,
    )
    _save(seeded(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)], config), torch.float32, folder)
    tokenizer.save(str(folder / TOKENIZER))
    (folder / TEMPLATE).write_text(QWEN_TEMPLATE)
    patch = vision["patch_size"]
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": 16 * patch**2,
        "max_pixels": 256 * patch**2,
        "patch_size": patch,
        "temporal_patch_size": 2,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


_PATCHES = {"num_heads": 4, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
_WIDE = {"depth": 6, "hidden_size": 96, "intermediate_size": 160, "out_hidden_size": 128}
_QWEN_VISION: Mapping[str, dict[str, Any]] = {
    "qwen2_vl": _PATCHES | {"depth": 5, "embed_dim": 96, "hidden_size": 128, "mlp_ratio": 2},
    "qwen2_5_vl": _PATCHES | _WIDE | {"window_size": 112, "fullatt_block_indexes": [2, 5]},
    "qwen3_vl": _PATCHES
    | _WIDE
    | {"patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [1, 3, 4]},
}


def write_text(folder: Path, special: Mapping[str, int], size: int, *, template: str = PLAIN_TEMPLATE) -> None:
    """A tokenizer of `size` tokens, the `special` ones at their places and a byte at each other one; and a template."""
    words, free = dict(special), (place for place in range(size) if place not in special.values())
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), key=ord)
    words |= zip(chain(letters, (f"word{number}" for number in range(size))), free, strict=False)
    tokenizer = Tokenizer(BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(content, special=True, normalized=False) for content in special])
    tokenizer.save(str(folder / TOKENIZER))
    (folder / TEMPLATE).write_text(template)


def seeded(kind: Any, config: Any) -> Any:
    """A model whose rows keep their size from layer to layer, so that all of it shows in what comes out."""
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
                module.weight.normal_(0, 1.5 / module.weight[0].numel() ** 0.5)
                if module.bias is not None:
                    module.bias.normal_(0, 0.3)
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0, 1)
    return model


def _save(model: Any, dtype: torch.dtype, folder: Path) -> None:
    with quiet():
        model.to(dtype).save_pretrained(folder)
