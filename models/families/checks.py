"""What families require of a model's settings, as transformers has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ROTATIONS = ("default", "linear", "llama3", "yarn")  # the rope types that do not depend on the length of the text
# "dynamic" depends on it only behind max_position_embeddings, where no text goes.
BOUNDED_ROTATIONS = (*ROTATIONS, "dynamic")


def channels(name: str, value: Any) -> tuple[float, ...]:
    """The three channels of an image processor's setting, which may be one number for all. Raises ValueError."""
    each = (value,) * 3 if isinstance(value, int | float) else tuple(value)
    if len(each) != 3:
        raise ValueError(f"{name} {value!r}, where three numbers are supported")
    return each


def check_decoder(text: Any, kinds: Sequence[str], rotations: Sequence[str] = ROTATIONS) -> None:
    """That the decoder of `text`, a text_config, is one of these `kinds`, without windows, and turns in a known way.

    Raises ValueError.
    """
    if text.model_type not in kinds:
        raise ValueError(
            f"a decoder of the kind {text.model_type} (text_config), where {' or '.join(kinds)} is supported"
        )
    if (kind := text.rope_parameters["rope_type"]) not in rotations:
        raise ValueError(f"rope_type {kind!r} in its text_config; supported: {', '.join(rotations)}")
    check_whole_heads(text)
    if others := set(getattr(text, "layer_types", None) or ()) - {"full_attention"}:
        raise ValueError(f"layer_types {min(others)!r} (use_sliding_window), where 'full_attention' is supported")


def check_whole_heads(text: Any) -> None:
    """That the decoder of `text`, a text_config, rotates its heads as a whole. Raises ValueError."""
    if (share := text.rope_parameters.get("partial_rotary_factor", 1.0)) != 1:
        raise ValueError(f"partial_rotary_factor {share!r} in its text_config, where 1 is supported")
