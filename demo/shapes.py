"""The shapes of the demo's two models, both of transformers' SmolVLM architecture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import SmolVLMConfig

from cutline.demo.tokenizer import END, PAD, START
from cutline.models.families.smolvlm import IMAGE, SmolVLM

PATCH = 8
SCALE = 2  # pixel shuffle: SCALE * SCALE patches become one image token
FAMILY = SmolVLM(tile=64, patch=PATCH, tile_tokens=(64 // PATCH // SCALE) ** 2, longest_edge=64, split=False)


@dataclass(frozen=True, slots=True)
class DemoShape:
    """Layers and widths of one model. A head is 32 wide; the feed-forward part `vision_ff` or `decoder_ff`."""

    width: int
    vision_layers: int
    vision_ff: int
    decoder_layers: int
    decoder_ff: int

    def config(self, vocabulary: dict[str, int]) -> SmolVLMConfig:
        """The transformers config of this shape, for a vocabulary of tokens and their ids."""
        heads = self.width // 32
        special: dict[str, Any] = {
            "pad_token_id": vocabulary[PAD],
            "bos_token_id": vocabulary[START],
            "eos_token_id": vocabulary[END],
        }
        return SmolVLMConfig(
            image_token_id=vocabulary[IMAGE],
            scale_factor=SCALE,
            tie_word_embeddings=True,
            **special,
            vision_config={
                "hidden_size": self.width,
                "intermediate_size": self.vision_ff,
                "num_hidden_layers": self.vision_layers,
                "num_attention_heads": heads,
                "image_size": 64,
                "patch_size": PATCH,
            },
            text_config={
                "model_type": "llama",
                "vocab_size": len(vocabulary),
                "hidden_size": self.width,
                "intermediate_size": self.decoder_ff,
                "num_hidden_layers": self.decoder_layers,
                "num_attention_heads": heads,
                "num_key_value_heads": heads,
                "head_dim": 32,
                "max_position_embeddings": 512,
                "rms_norm_eps": 1e-5,
                "rope_theta": 10000.0,
                "tie_word_embeddings": True,
                **special,
            },
        )


SHAPES = {
    "target": DemoShape(width=128, vision_layers=4, vision_ff=512, decoder_layers=4, decoder_ff=384),
    "drafter": DemoShape(width=64, vision_layers=2, vision_ff=192, decoder_layers=2, decoder_ff=160),
}
