"""One small model of each family with seeded random weights, as Hugging Face folders: a new family adds one to SMALL.

Their tokenizer is the demo's, with the tokens that the family's published template writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from cutline.demo.bundles import TARGET
from cutline.demo.tokenizer import PAD, START
from cutline.models.families import internvl, qwen
from cutline.models.prompt import TEMPLATE
from cutline.models.vocabulary import TOKENIZER
from cutline.testing.random_models import save_weights, seeded

Words = Mapping[str, int]
END = "<|im_end|>"

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

# That of InternVL3, without what it has for videos.
INTERNVL_TEMPLATE = """{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}\
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}\
{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}\
{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{'<|im_end|>\n'}}\
{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"""


@dataclass(frozen=True, slots=True)
class Small:
    """A model of transformers' `kind`: its `config` by the tokens of a tokenizer that has the `markers`.

    Its text_config is completed with the sizes that all have.
    """

    kind: str
    markers: tuple[str, ...]
    template: str
    config: Callable[[Words], dict[str, Any]]
    processor: Mapping[str, Any]

    def write(self, folder: Path) -> None:
        """Make the folder."""
        tokenizer = Tokenizer.from_file(str(TARGET / TOKENIZER))
        tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (*self.markers, END)])
        words = tokenizer.get_vocab()
        special = {"pad_token_id": words[PAD], "bos_token_id": words[START], "eos_token_id": words[END]}
        said = self.config(words)
        text = {**TEXT, "vocab_size": len(words) + 1, **special, **said.pop("text_config")}
        configured: Any = CONFIG_MAPPING[self.kind]
        config = configured(tie_word_embeddings=False, text_config=text, **said)
        save_weights(seeded(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)], config), torch.float32, folder)
        tokenizer.save(str(folder / TOKENIZER))
        (folder / TEMPLATE).write_text(self.template)
        (folder / "preprocessor_config.json").write_text(json.dumps(self.processor))


TEXT: Mapping[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}


def _qwen(kind: str, vision: Mapping[str, Any], **text: Any) -> Small:
    patch = vision.get("patch_size", 14)
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]} | text.pop("rope", {})
    patches = {"num_heads": 4, "patch_size": patch, "spatial_merge_size": 2, "temporal_patch_size": 2}

    def config(words: Words) -> dict[str, Any]:
        image, start, end = (words[marker] for marker in (qwen.IMAGE, qwen.START, qwen.END))
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
    return Small(kind, (qwen.IMAGE, qwen.START, qwen.END), QWEN_TEMPLATE, config, processor)


def _internvl(text: str) -> Small:
    def config(words: Words) -> dict[str, Any]:
        return {
            "image_token_id": words[internvl.IMAGE],
            "image_seq_length": 4,
            "vision_config": {
                "hidden_size": 96,
                "intermediate_size": 160,
                "num_hidden_layers": 4,
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


_WIDE = {"depth": 6, "hidden_size": 96, "intermediate_size": 160, "out_hidden_size": 128}
SMALL: Mapping[str, Small] = {
    "qwen2-vl": _qwen("qwen2_vl", {"depth": 5, "embed_dim": 96, "hidden_size": 128, "mlp_ratio": 2}),
    "qwen2.5-vl": _qwen("qwen2_5_vl", {**_WIDE, "window_size": 112, "fullatt_block_indexes": [2, 5]}),
    "qwen3-vl": _qwen(
        "qwen3_vl",
        {**_WIDE, "patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [1, 3, 4]},
        head_dim=48,
        rope={"mrope_section": [8, 8, 8], "mrope_interleaved": True},
    ),
    "internvl-qwen2": _internvl("qwen2"),
    "internvl-qwen3": _internvl("qwen3"),
}
