"""What small models of Gemma 4 are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cutline.models.families.gemma import tower

GEMMA4_MARKERS = (tower.IMAGE, tower.START, tower.END, "<|turn>", "<turn|>")
GEMMA4_BLOCKS: dict[str, Any] = {"use_bidirectional_attention": "vision"}
GEMMA4_PROCESSOR: Mapping[str, Any] = {
    "image_processor_type": "Gemma4ImageProcessor",
    "do_normalize": False,
    "patch_size": 8,
    "pooling_kernel_size": 2,
    "max_soft_tokens": 70,
}


def gemma4_config(
    words: Mapping[str, int], *, windowed: str, given: int, standard: bool, **text: Any
) -> dict[str, Any]:
    """A config whose layers have a window where `windowed` has a w, and are `given` so much a token.

    With more settings of its `text`, and a `standard` that the tower's rows keep.
    """
    size = len(words) + 1
    return {
        "image_token_id": words[tower.IMAGE],
        "boi_token_id": words[tower.START],
        "eoi_token_id": words[tower.END],
        "video_token_id": words["<|turn>"],  # as good as any that may be answered
        "audio_token_id": None,
        "audio_config": None,
        "vision_config": {
            "hidden_size": 96,
            "intermediate_size": 160,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 24,
            "patch_size": 8,
            "pooling_kernel_size": 2,
            "position_embedding_size": 160,
            "standardize": standard,
            "use_clipped_linears": given > 0,  # as in the models whose layers are given something
        },
        "text_config": {
            "head_dim": 32,
            "global_head_dim": 48,
            "sliding_window": 6,
            "num_hidden_layers": len(windowed),
            "layer_types": ["sliding_attention" if one == "w" else "full_attention" for one in windowed],
            "hidden_size_per_layer_input": given,
            "vocab_size_per_layer_input": size,
            "final_logit_softcapping": 30.0,
            **text,
        },
    }
