"""What the tests of models share: a model of the SmolVLM architecture, small enough to make on the spot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Configured = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def tiny() -> Configured:
    """The configuration of one: heads wider than width / heads, twice as many for queries as for keys and values."""

    def configured(*, tied: bool = True, **text: Any) -> dict[str, Any]:
        return {
            "image_token_id": 7,
            "scale_factor": 2,
            "tie_word_embeddings": tied,
            "pad_token_id": 0,
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 32,
                "patch_size": 8,
            },
            "text_config": {
                "model_type": "llama",
                "vocab_size": 90,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "max_position_embeddings": 64,
                "tie_word_embeddings": tied,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
                **text,
            },
        }

    return configured
