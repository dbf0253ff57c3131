"""Settings of the folders of Qwen's models: what they say, or what of it is not supported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from cutline.models.families.qwen.video import QwenSampling
from cutline.models.images import MAX_PIXELS


def one_number(config: Any, name: str) -> int:
    """The setting `name` of a tower's `config`. Raises ValueError unless it is one number."""
    value = getattr(config, name)
    if not isinstance(value, int):
        raise ValueError(f"{name} {value!r} in its vision_config, where one number is supported")
    return value


def picture_area(size: Mapping[str, Any]) -> tuple[int, int]:
    """The limits of a picture's area, in pixels, by an image processor's `size`. Raises ValueError."""
    least, most = size.get("shortest_edge"), size.get("longest_edge")
    if not (isinstance(least, int) and isinstance(most, int) and 1 <= least <= most <= MAX_PIXELS):
        raise ValueError(f"size {dict(size)!r} (min_pixels, max_pixels), where up to {MAX_PIXELS} are supported")
    return least, most


def rotary_sections(text: Any) -> tuple[int, ...]:
    """How many frequencies belong to each axis. Raises ValueError."""
    rope = text.rope_parameters
    if (kind := rope["rope_type"]) != "default":
        raise ValueError(f"rope_type {kind!r} in its rope_scaling, where 'default' or 'mrope' is supported")
    sections = rope.get("mrope_section")
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    half = int(head * rope.get("partial_rotary_factor", 1.0)) // 2
    if not isinstance(sections, list | tuple) or len(sections) != 3 or sum(sections) != half:
        raise ValueError(
            f"mrope_section {sections!r} in its rope_scaling, where three numbers, {half} in all, are supported"
        )
    return tuple(sections)


def read_sampling(said: Any, kind: str, fields: Mapping[str, Any]) -> QwenSampling | None:
    """The settings `said` of a folder's video processor, where it is of this `kind` and has the patches of `fields`.

    None where it is not: then frames are looked at as images.
    """
    if not isinstance(said, Mapping) or said.get("video_processor_type") != kind:
        return None
    sizes = {"patch_size": "patch", "merge_size": "merge", "temporal_patch_size": "frames"}
    alike = all(said.get(name, fields[ours]) == fields[ours] for name, ours in sizes.items())
    for name, ours in (("image_mean", "mean"), ("image_std", "std")):
        alike &= tuple(said.get(name) or fields[ours]) == tuple(fields[ours])
    if not alike or said.get("cap_pixels_per_frame"):
        return None
    size = said.get("size") or {}
    given = {"rate": said.get("fps"), "least": said.get("min_frames"), "most": said.get("max_frames")}
    given |= {"least_pixels": size.get("shortest_edge"), "most_pixels": size.get("longest_edge")}
    try:
        return msgspec.convert({name: value for name, value in given.items() if value is not None}, QwenSampling)
    except msgspec.ValidationError:
        return None
