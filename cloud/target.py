"""The target on torch: a span of transformers' own modules, run on ragged rows of many sessions at once.

A session enters a pass at the layer where its cut is: the rows of one that was cut inside the decoder join there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cutline.cloud.accelerator import free_memory
from cutline.cloud.attention import ATTENTION, Layout, SlotCache, Stretch, sort_key
from cutline.cloud.budget import slot_bytes, slots_that_fit
from cutline.cloud.loading import load_model
from cutline.cloud.packing import pack
from cutline.cloud.session import Rows
from cutline.cloud.tower import Tower
from cutline.models.bundle import Bundle
from cutline.models.families import Grid
from cutline.models.layerline import END
from cutline.models.wire import Wire

# In which a boundary goes on to the next worker to the last bit.
_WIRES = {torch.float32: Wire.FLOAT32, torch.float16: Wire.FLOAT16, torch.bfloat16: Wire.BFLOAT16}


class Target:
    """The layers `[start, end)` of a bundle's target, with room for `slots` sessions of `context` tokens.

    Without `slots` there are as many as fit into the memory that is free once the weights are there.

    Used by one thread at a time.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        slots: int | None = None,
        context: int,
        device: str = "cpu",
        start: str = "image",
        end: str = END,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Weights are computed with as `dtype`, or as they are stored. Raises InputError where slots do not fit."""
        line, spec = bundle.manifest.line, bundle.manifest.decoder
        model = load_model(bundle, line.layers[line.place(start) : line.place(end)], dtype=dtype).to(device)
        self.model = model  # transformers' own
        self.context = context
        self.decodes = line.place(end) > line.place("decoder.0")  # has a part in every token
        self.chooses = end == END  # has the head: what comes out of a pass are logits
        self.wire = _WIRES[model.dtype]
        self._line, self._family = line, bundle.manifest.family
        self._device, self._dtype = torch.device(device), model.dtype
        if self._device.type == "cpu":
            pack(model, self._dtype)
        self.tower = Tower(model.model, self._family, line, end=end)
        self._decoder, self._head = model.model.get_decoder(), model.lm_head
        self._decoder.config._attn_implementation = ATTENTION
        self._image_token = bundle.manifest.image_token
        self._heads = spec.heads // spec.kv_heads
        self._layers = range(line.decoder_layer(start), line.decoder_layer(end))
        slot = slot_bytes(
            layers=len(self._layers),
            kv_heads=spec.kv_heads,
            head_dim=spec.head_dim,
            context=context,
            itemsize=self._dtype.itemsize,
        )
        self.slots = slots_that_fit(slots, slot=slot, free=free_memory(device))
        self._cache = SlotCache(
            (len(self._layers), self.slots, spec.kv_heads, context, spec.head_dim),
            first=self._layers.start,
            like=torch.empty(0, dtype=self._dtype, device=self._device),
        )

    @torch.inference_mode()
    def encode(self, boundary: NDArray[np.float32], cut: str, grids: Sequence[Grid]) -> Tensor:
        """Rows (n, width) of the images from what crosses `cut`, a name of `LayerLine.image_cuts`.

        They stand before the decoder, or where these layers end; see `Tower.encode`.
        """
        return self.tower.encode(self._on_device(boundary), cut, grids)

    @torch.inference_mode()
    def run(self, batch: Sequence[Rows], images: Sequence[Tensor | None]) -> list[Tensor]:
        """One pass through the decoder's layers: of each of `batch` its rows (n, width) after them, in float32.

        With the head they are logits (wanted, vocabulary) instead. `images[i]` holds the image rows (n, width) of the
        session's first n image tokens; None if none are among `batch[i].tokens`. A span that ends before the decoder
        gives them back.
        """
        if not self.decodes:
            return [torch.empty(0, 1) if image is None else image.float().cpu() for image in images]
        # Whoever enters at a later layer stands further back, so that those who join are put behind the others.
        entry = {at: self._line.decoder_layer(rows.session.request.cut) for at, rows in enumerate(batch)}
        order = sorted(entry, key=lambda at: (entry[at], sort_key(len(batch[at].tokens), batch[at].session.slot)))
        entries, ordered = [entry[at] for at in order], [batch[at] for at in order]
        stretches = _stretches(ordered)
        self._cache.note(stretches)
        entering = [self._entering(batch[at], images[at]) for at in order]
        cos, sin = self._rotary(ordered, entering[0])
        hidden, joined, layout = entering[0][:0], 0, None
        for index in (*self._layers, self._layers.stop):
            come = bisect_right(entries, index)
            if come > joined:
                hidden, joined = torch.cat([hidden, *entering[joined:come]]), come
                layout = Layout(stretches[:joined], self._cache, heads=self._heads)
            if layout is not None and index in self._layers:
                rotary = cos[..., : len(hidden), :], sin[..., : len(hidden), :]
                layer = self._decoder.layers[index]
                hidden = layer(hidden[None], position_embeddings=rotary, layout=layout, cache=self._cache)[0]
        made = dict(zip(order, self._leaving(ordered, stretches, hidden), strict=True))
        return [made[at] for at in range(len(batch))]

    def _on_device(self, rows: NDArray[np.float32]) -> Tensor:
        # A tensor of its own: what came off the wire may be read-only.
        return torch.tensor(rows, dtype=self._dtype, device=self._device)

    def _entering(self, rows: Rows, image: Tensor | None) -> Tensor:
        """What enters (n, width): the boundary that came, or embedded tokens with the images among them."""
        if rows.boundary is not None:
            return self._on_device(rows.boundary)
        ids = torch.tensor(rows.tokens, device=self._device)
        hidden: Tensor = self._decoder.embed_tokens(ids)
        if image is not None:
            # The prompt's image tokens come first; one that was drafted or answered is a token like any other.
            before = rows.session.request.tokens[: rows.start].count(self._image_token)
            places = (ids == self._image_token).nonzero()[: len(image) - min(before, len(image)), 0]
            hidden[places] = image[before : before + len(places)].to(hidden)
        return hidden

    def _rotary(self, batch: Sequence[Rows], like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (1, rows, width) of the rows' positions."""
        positions = np.hstack([rows.positions for rows in batch])
        ids = torch.from_numpy(self._family.as_ids(positions)).to(self._device)
        rotary: tuple[Tensor, Tensor] = self._decoder.rotary_emb(like, ids)
        return rotary

    def _leaving(self, batch: Sequence[Rows], stretches: Sequence[Stretch], hidden: Tensor) -> Sequence[Tensor]:
        """What comes out of a pass for each of `batch`."""
        if not self.chooses:
            return [hidden[stretch.first : stretch.last].float().cpu() for stretch in stretches]
        wanted = [
            row
            for rows, stretch in zip(batch, stretches, strict=True)
            for row in range(stretch.last - rows.wanted, stretch.last)
        ]
        if not wanted:  # pieces of prompts alone
            return [hidden[:0].float() for _ in batch]
        logits = self._head(self._decoder.norm(hidden[wanted])).float()
        parts: Sequence[Tensor] = logits.split([rows.wanted for rows in batch])
        return parts


def _stretches(batch: Sequence[Rows]) -> list[Stretch]:
    stretches, first = [], 0
    for rows in batch:
        stretches.append(Stretch(first, first + len(rows.tokens), rows.session.slot, rows.start))
        first += len(rows.tokens)
    return stretches
