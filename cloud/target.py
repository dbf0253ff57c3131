"""The target on torch: transformers' own modules, run on ragged rows of many sessions at once.

Rows of all sessions stand behind each other in one sequence of batch size 1. Everything but attention treats a row
alone; attention, registered below, gives every session its own keys and values, held in preallocated slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForImageTextToText
from transformers.modeling_utils import AttentionInterface
from transformers.utils.logging import disable_progress_bar

from cutline.cloud.session import Rows
from cutline.errors import BundleError
from cutline.models.bundle import Bundle

ATTENTION = "cutline_slots"


@dataclass(frozen=True, slots=True)
class Span:
    """Where one session's rows stand: `first` to `last` in the pass, from position `start` on in slot `slot`."""

    first: int
    last: int
    slot: int
    start: int


class SlotCache:
    """Keys and values of every slot and layer: (layers, slots, kv_heads, context, head_dim)."""

    def __init__(self, *, layers: int, slots: int, heads: int, context: int, width: int, like: Tensor) -> None:
        shape = (layers, slots, heads, context, width)
        self.keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.values = torch.zeros(shape, dtype=like.dtype, device=like.device)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: None,
    *,
    spans: Sequence[Span],
    slots: SlotCache,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of ragged rows: `query` (1, heads, rows, width), `key` and `value` alike; transformers' signature."""
    del mask
    attended = torch.empty_like(query)
    for span in spans:
        end = span.start + span.last - span.first
        rows = slice(span.first, span.last)
        keys, values = slots.keys[module.layer_idx, span.slot], slots.values[module.layer_idx, span.slot]
        keys[:, span.start : end] = key[0, :, rows]
        values[:, span.start : end] = value[0, :, rows]
        attended[:, :, rows] = functional.scaled_dot_product_attention(
            query[:, :, rows],
            keys[None, :, :end],
            values[None, :, :end],
            attn_mask=_causal(span, end, query.device),
            is_causal=span.start == 0,
            scale=module.scaling,
            enable_gqa=True,
        )
    return attended.transpose(1, 2), None


def _causal(span: Span, end: int, device: torch.device) -> Tensor | None:
    """The mask (rows, end) where rows join a longer past; None where none is needed or the kernel makes its own."""
    if span.start == 0 or end - span.start == 1:
        return None
    return torch.ones(end - span.start, end, dtype=torch.bool, device=device).tril(span.start)


AttentionInterface.register(ATTENTION, _attend)


def load_model(bundle: Bundle) -> Any:
    """The transformers model of a target's bundle, from its verified files alone. Raises BundleError."""
    if bundle.manifest.role != "target":
        raise BundleError(f"{bundle.path} holds a {bundle.manifest.role}; a worker needs a target's bundle")
    disable_progress_bar()
    model = AutoModelForImageTextToText.from_pretrained(
        bundle.path, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype="auto"
    )
    return model.eval().requires_grad_(False)


class Target:
    """The target of a bundle, with room for `slots` sessions of `context` tokens. Used by one thread at a time."""

    def __init__(self, bundle: Bundle, *, slots: int, context: int, device: str = "cpu") -> None:
        model = load_model(bundle).to(device)
        self._decoder = model.model.text_model
        self._decoder.config._attn_implementation = ATTENTION
        self._tower, self._connector, self._head = model.model.vision_model, model.model.connector, model.lm_head
        self._image_token = bundle.manifest.image_token
        self._image, self._line = bundle.manifest.image, bundle.manifest.line
        spec = bundle.manifest.decoder
        self.slots = slots
        self.context = context
        self.width = spec.width
        self._device = torch.device(device)
        self._cache = SlotCache(
            layers=spec.layers,
            slots=slots,
            heads=spec.kv_heads,
            context=context,
            width=spec.head_dim,
            like=self._head.weight,
        )

    def boundary_shape(self, cut: str) -> tuple[int, int]:
        """Rows a tile and width of the boundary at `cut`, a name of `LayerLine.image_cuts` but `image`."""
        if cut == "decoder.0":
            return self._image.tokens, self.width
        return self._tower.embeddings.num_patches, self._tower.config.hidden_size

    @torch.inference_mode()
    def encode(self, boundary: NDArray[np.float32], cut: str) -> Tensor:
        """Image rows (n * tokens, width) from what crosses `cut`.

        `boundary` is (n, 3, tile, tile) pixels at cut `image`, else (n * rows, width) as `boundary_shape` says.
        """
        hidden = torch.from_numpy(boundary).to(self._device, self._head.weight.dtype)
        if cut == "decoder.0":
            return hidden
        if cut == "image":
            patches = self._tower(pixel_values=hidden).last_hidden_state
        else:
            hidden = hidden.unflatten(0, (-1, self.boundary_shape(cut)[0]))
            for layer in self._tower.encoder.layers[self._line.vision_layer(cut) :]:
                hidden = layer(hidden, None)
            patches = self._tower.post_layernorm(hidden)
        rows: Tensor = self._connector(patches).flatten(0, 1)
        return rows

    @torch.inference_mode()
    def run(self, batch: Sequence[Rows], images: Sequence[Tensor | None]) -> list[Tensor]:
        """One pass: logits (wanted, vocabulary) float32 of each of `batch`.

        `images[i]` holds the image rows (n, width) for the first n image tokens among `batch[i].tokens`; None if it
        has none.
        """
        spans, first = [], 0
        for rows in batch:
            spans.append(Span(first, first + len(rows.tokens), rows.session.slot, rows.start))
            first += len(rows.tokens)
        ids = torch.tensor([token for rows in batch for token in rows.tokens], device=self._device)
        positions = [position for rows in batch for position in range(rows.start, rows.start + len(rows.tokens))]
        hidden = self._decoder.embed_tokens(ids)
        for span, image in zip(spans, images, strict=True):
            if image is not None:
                part = hidden[span.first : span.last]
                # The prompt's image tokens come first; one that was drafted or answered is a token like any other.
                places = (ids[span.first : span.last] == self._image_token).nonzero()[: len(image), 0]
                part[places] = image.to(part)
        hidden = hidden[None]
        rotary = self._decoder.rotary_emb(hidden, torch.tensor([positions], device=self._device))
        for layer in self._decoder.layers:
            hidden = layer(hidden, position_embeddings=rotary, spans=spans, slots=self._cache)
        wanted = [
            row for rows, span in zip(batch, spans, strict=True) for row in range(span.last - rows.wanted, span.last)
        ]
        logits = self._head(self._decoder.norm(hidden[0, wanted])).float()
        return list(logits.split([rows.wanted for rows in batch]))
