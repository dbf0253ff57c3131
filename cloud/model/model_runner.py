"""The target on torch: a span of transformers' own modules, run on ragged rows of many sessions at once.

A session enters a pass at the layer where its cut is: the rows of one that was cut inside the decoder join there.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from cutline.cloud.model.attention import ATTENTION, FamilyLayer, Layout, Rotary, sort_key
from cutline.cloud.model.batch import Rows, Stretch
from cutline.cloud.model.compilation import Compiled, pieces, run_layers
from cutline.cloud.model.device import free_memory
from cutline.cloud.model.loader import load_model
from cutline.cloud.model.memory import MOST_DRAFTED, context_that_fits, image_room, slot_size, slots_that_fit
from cutline.cloud.model.packing import pack
from cutline.cloud.model.state.mixers import put_mixers
from cutline.cloud.model.state.slot_cache import SlotCache
from cutline.cloud.model.tensor_parallel import Pass, RankGroup, Resume, in_step
from cutline.cloud.model.vision import Steps, Tower, whole
from cutline.core.wire import Wire
from cutline.errors import InputError
from cutline.models.bundle import Bundle
from cutline.models.families import Grid
from cutline.models.families.layer_state import KEYS_VALUES, KeysValues, Recurrence
from cutline.models.layerline import END

BLOCK = 4  # layers of a pass between two looks at whether anybody waits for it

# In which a boundary goes on to the next worker to the last bit.
_WIRES = {torch.float32: Wire.FLOAT32, torch.float16: Wire.FLOAT16, torch.bfloat16: Wire.BFLOAT16}


class PassAborted(Exception):
    """Nobody waits for this pass any more. What it wrote is not known to anybody, and will be written again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Room for `slots` sessions of `context` tokens, and `images` bytes for images to keep.

    Without `slots` there are as many as fit into the memory that is free once the weights are there, and without
    `images` they get a share of it. Where sessions of `context` tokens are too long for what is free, they hold less if
    one may `shorten` them.
    """

    context: int
    slots: int | None = None
    images: int | None = None
    shorten: bool = False


class Target:
    """The `layers` (start, end) of a bundle's target, with room as `capacity` says.

    What there came to be its `slots`, `context` and `image_room` tell. Used by one thread at a time.
    """

    def __init__(
        self,
        bundle: Bundle,
        capacity: Capacity,
        *,
        layers: tuple[str, str] = ("image", END),
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        group: RankGroup | None = None,
        compiled: bool = False,
    ) -> None:
        """Weights are computed with as `dtype`, or as they are stored. Raises InputError where slots do not fit.

        With a `group` this is the part of one rank; every rank has the decoder's layers, the first one the others too.
        What is to be `compiled`, which a group's part is not, is so at once and takes its time; InputError where torch
        cannot.
        """
        assert not compiled or group is None
        _check_alike(bundle, compiled=compiled)
        line, spec, (start, end) = bundle.manifest.line, bundle.manifest.decoder, layers
        names, ranks = line.layers[line.place(start) : line.place(end)], 1 if group is None else group.count
        model = load_model(bundle, names, dtype=dtype, mesh=None if group is None else group.mesh).to(device)
        self.model = model  # transformers' own
        self.decodes = line.place(end) > line.place("decoder.0")  # has a part in every token
        self.chooses = end == END  # has the head: what comes out of a pass are logits
        self.wire = _WIRES[model.dtype]
        self._group = group
        self._line, self._family = line, bundle.manifest.family
        self._device, self._dtype = torch.device(device), model.dtype
        if self._device.type == "cpu":
            pack(model, self._dtype)
        self.tower = Tower(model, self._family, line, end=end)
        self._modules = self._family.parts.modules(model)
        own = [self._family.decoding(index) for index in range(line.decoder)]
        self.layers = [
            layer if decoding is None else FamilyLayer(layer, decoding, index)
            for index, (layer, decoding) in enumerate(zip(self._modules.layers, own, strict=True))
        ]  # of the decoder, as they are run; who has others has none in their place
        if None in own:
            self._modules.decoder.config._attn_implementation = ATTENTION
        self._image_token = bundle.manifest.image_token
        self._layers = range(line.decoder_layer(start), line.decoder_layer(end))
        self._width = spec.width
        keeps = [self._family.keeps(layer) for layer in self._layers]
        put_mixers(self._modules.layers, self._family, self._layers)
        self._sights = [
            (self._family.sight(layer), spec.heads // kept.sizes(spec.kv_heads, spec.head_dim)[0])
            for layer, kept in zip(self._layers, keeps, strict=True)
            if isinstance(kept, KeysValues)
        ]
        self._turns = [self._family.rotary(layer) for layer in self._layers]
        pairs = zip(self._layers[1:], itertools.pairwise(self._turns), strict=False)
        self._turning = [layer for layer, (before, after) in pairs if before != after]
        self._ends = 1 if end == END else self._family.streams(line, end)  # streams that go on to the next worker
        # Whether the rows of pictures beside a prompt go on to the next worker, too.
        self.passes_sides = self.decodes and self._family.takes_sides(line.decoder_layer(end), line.decoder)
        size = slot_size(keeps, kv_heads=spec.kv_heads // ranks, head_dim=spec.head_dim, itemsize=self._dtype.itemsize)
        self.most_drafted = MOST_DRAFTED if any(isinstance(kept, Recurrence) for kept in keeps) else None
        if group is not None:
            group.wait()  # weights that are still read would count as free memory
        free = free_memory(device) if group is None else group.least(free_memory(device))
        self.context = context = (
            context_that_fits(capacity.context, asked=capacity.slots, size=size, free=free)
            if capacity.shorten
            else capacity.context
        )
        self.slots = slots_that_fit(capacity.slots, slot=size.token * context + size.fixed, free=free)
        # Where layers end before the decoder, nothing is kept: the next worker wants the rows.
        self.image_room = image_room(capacity.images, free=free) if self.decodes else 0
        self._cache = SlotCache(
            (self.slots, spec.kv_heads // ranks, context, spec.head_dim),
            keeps,
            first=self._layers.start,
            like=torch.empty(0, dtype=self._dtype, device=self._device),
        )

        self._compiled: Compiled | None = None
        if compiled and self.decodes:
            ends = [layer - self._layers.start for layer in self._turning]
            self._compiled = Compiled([self.layers[index] for index in self._layers], self._cache, ends=ends)
            self._compiled.warm_up(self._warm_up)

    def steps(
        self,
        boundary: NDArray[np.float32],
        cut: str,
        grids: Sequence[Grid],
        *,
        aborted: Callable[[], bool] = lambda: False,
    ) -> Steps:
        """Make rows (n, width) of the images from what crosses `cut`, a name of `LayerLine.image_cuts`; step by step.

        They stand before the decoder, or where these layers end; see `Tower.steps`. Raises Unwanted once `aborted`.
        """
        made = yield from self.tower.steps(self.on_device(boundary), cut, grids, aborted=aborted)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # or the next pass would be timed with what was only begun
        return made

    def encode(self, boundary: NDArray[np.float32], cut: str, grids: Sequence[Grid]) -> Tensor:
        """All `steps` at once."""
        return whole(self.steps(boundary, cut, grids))

    def parted(self, rows: Tensor, grids: Sequence[Grid]) -> list[Tensor]:
        """Of `rows` (n, width) of images that became `grids` those of each; they share no memory."""
        if len(grids) == 1:
            return [rows]
        return [part.clone() for part in rows.split([self._family.rows(grid) for grid in grids])]

    def kept(self, slot: int, count: int) -> int:
        """How many of the first `count` positions of `slot`, which all stand, a session can begin after."""
        return self._cache.kept(slot, count)

    def resume(self, slot: int, source: int, count: int) -> None:
        """A session begins in `slot` after the first `count` positions of what `source` holds."""
        if self._group is not None:
            self._group.tell(Resume(slot, source, count))
        self._cache.resume(slot, source, count)

    @torch.inference_mode()
    def run(
        self, batch: Sequence[Rows], images: Sequence[Tensor | None], *, aborted: Callable[[], bool] = lambda: False
    ) -> list[Tensor]:
        """One pass through the decoder's layers: of each of `batch` its rows (n, width) after them, in float32.

        With the head they are logits (wanted, vocabulary) instead. `images[i]` holds the image rows (n, width) of the
        session's first n image tokens; None if none are among `batch[i].tokens`. A span that ends before the decoder
        gives them back. Between blocks of layers it looks whether it is `aborted`, unless ranks must stay in step, and
        raises PassAborted.
        """
        if not self.decodes:  # a row a stream
            return [torch.empty(0, 1) if image is None else self._apart(image.float().cpu()) for image in images]
        # Whoever enters at a later layer stands further back, so that those who join are put behind the others.
        entry = {at: self._line.decoder_layer(rows.cut) for at, rows in enumerate(batch)}
        order = sorted(entry, key=lambda at: (entry[at], sort_key(len(batch[at].tokens), batch[at].slot)))
        entries, ordered = [entry[at] for at in order], [batch[at] for at in order]
        stretches = _stretches(ordered)
        entering = self._aligned([self._entering(batch[at], images[at]) for at in order])
        positions = np.hstack([rows.positions for rows in ordered])
        passing = Pass(entries, stretches, positions, entering)
        self._cache.arriving = self._arriving(batch, images)
        if self._group is None:
            hidden = self._through(passing, aborted, self._given(ordered, entering))
        else:
            self._group.tell(passing)
            with in_step():
                hidden = self._through(passing)
        self._cache.arrived()
        made = dict(zip(order, self._leaving(ordered, stretches, hidden), strict=True))
        return [made[at] for at in range(len(batch))]

    @torch.inference_mode()
    def follow(self) -> None:
        """Do as the first rank does, until it stops. Raises RankLost."""
        assert self._group is not None
        like = torch.empty(self._width, dtype=self._dtype, device=self._device)
        while (told := self._group.hear(like)) is not None:
            with in_step():
                match told:
                    case Pass():
                        self._through(told)
                    case Resume(slot, source, count):
                        self._cache.resume(slot, source, count)

    def _through(
        self, passing: Pass, aborted: Callable[[], bool] = lambda: False, given: Tensor | None = None
    ) -> Tensor:
        """The rows (n, width) of a pass after the decoder's layers, which are `given` more. Raises PassAborted."""
        stretches, rows, beside = passing.stretches, passing.rows[:, : self._width], passing.rows[:, self._width :]
        self._cache.note(stretches)
        turns = {name: self._rotary(passing.positions, rows, name) for name in set(self._turns)}
        hidden, joined, layout = rows[:0], 0, None
        run = self._compiled or run_layers
        block = BLOCK if self._compiled is None else self._compiled.block
        # After each of these layers a stream beside the residual one is added to it.
        adding = range(min(len(self._family.taps), self._layers.stop)) if beside.shape[1] else range(0)
        ends = [*(layer + 1 for layer in adding), *self._turning]
        for piece in pieces(self._layers, passing.entries, block, ends=ends):
            if aborted():
                raise PassAborted
            come = bisect_right(passing.entries, piece.start)
            if come > joined:
                coming = rows[len(hidden) : stretches[come - 1].last]
                hidden, joined = torch.cat([hidden, coming]) if joined else coming, come
                layout = Layout(stretches[:joined], self._cache, sights=self._sights, given=given)
            if layout is not None and piece:
                turn = turns[self._turns[piece[0] - self._layers.start]]
                rotary = None if turn is None else (turn[0][..., : len(hidden), :], turn[1][..., : len(hidden), :])
                layers = [self.layers[index] for index in piece]
                hidden = run(layers, hidden[None], rotary, layout, self._cache)[0]
                if piece[-1] in adding:
                    hidden = hidden + beside[: len(hidden)].unflatten(1, (-1, self._width))[:, piece[-1]]
        # What later layers, of the next worker, take goes on with it.
        taken = min(self._layers.stop, len(self._family.taps))
        return torch.cat([hidden, beside[:, taken * self._width :]], 1) if self._ends > 1 else hidden

    @torch.inference_mode()
    def _warm_up(self, rows: int) -> None:
        """A pass of nobody's rows through all layers, in the first slot."""
        rows = min(rows, self.context)
        positions = np.zeros((self._family.axes, rows), np.int64)
        entering = torch.zeros(rows, self._width, dtype=self._dtype, device=self._device)
        self._through(Pass([self._layers.start], [Stretch(0, rows, 0, 0)], positions, entering))

    def on_device(self, rows: NDArray[np.float32]) -> Tensor:
        """Rows in the type and the place in which layers take them."""
        # A tensor of its own: what came off the wire may be read-only.
        return torch.tensor(rows, dtype=self._dtype, device=self._device)

    def _entering(self, rows: Rows, image: Tensor | None) -> Tensor:
        """What enters (n, streams * width): the boundary that came, or embedded tokens with the images among them."""
        if rows.boundary is not None:
            return self.on_device(rows.boundary)
        ids = torch.tensor(rows.tokens, device=self._device)
        hidden: Tensor = self._modules.embed(self._family.read_as(ids))
        if image is not None and not self._family.has_sides:
            # The prompt's image tokens come first; one that was drafted or answered is a token like any other.
            before = rows.before(self._image_token)
            places = (ids == self._image_token).nonzero()[: len(image) - min(before, len(image)), 0]
            if len(places):
                hidden = functional.pad(hidden, (0, image.shape[1] - self._width))
                hidden[places] = image[before : before + len(places)].to(hidden)
        if self._family.places_rows:
            places = torch.from_numpy(rows.positions[0]).to(self._device)
            hidden = self._family.placed(self._modules.placing, hidden, places)
        return hidden

    def _given(self, batch: Sequence[Rows], entering: Tensor) -> Tensor | None:
        """What layers are given beside the rows of a pass: see `Family.give`."""
        if not self._family.layer_inputs:
            return None
        ids = torch.tensor([token for rows in batch for token in rows.tokens], device=self._device)
        table, *modules = self._modules.giving
        given: Tensor = self._family.give(modules, table(self._family.read_as(ids)), entering[:, self._width :])
        return given

    def _arriving(self, batch: Sequence[Rows], images: Sequence[Tensor | None]) -> dict[int, Tensor]:
        """By slot the rows beside prompts whose keys are not there yet, in the order in which they are seen."""
        found = {}
        for rows, image in zip(batch, images, strict=True):
            if rows.sides is not None and image is not None and not (rows.start and self._cache.beside[rows.slot]):
                found[rows.slot] = image[torch.from_numpy(rows.sides.order).to(image.device)].to(self._dtype)
        return found

    def _apart(self, rows: Tensor) -> Tensor:
        """The streams of image rows (n, streams * width), a row each."""
        return rows.reshape(len(rows) * self._ends, rows.shape[1] // self._ends)

    def _aligned(self, parts: Sequence[Tensor]) -> Tensor:
        """What enters in one tensor: as wide as the residual stream where that is all there is, else with all streams.

        Of those beside it, who enters has the last ones: later layers' alone. Where layers are given something, the row
        with which a token entered stands beside it.
        """
        if self._family.layer_inputs:
            return torch.cat([torch.cat([part[:, : self._width], part[:, -self._width :]], 1) for part in parts])
        widest = max(part.shape[1] for part in parts)
        if widest > self._width or self._ends > 1:
            widest = self._width * (1 + len(self._family.taps))

        def widened(part: Tensor) -> Tensor:
            missing = part.new_zeros(len(part), widest - part.shape[1])
            return torch.cat([part[:, : self._width], missing, part[:, self._width :]], 1)

        return torch.cat([part if part.shape[1] == widest else widened(part) for part in parts])

    def _rotary(self, positions: NDArray[np.int64], like: Tensor, name: str | None) -> Rotary | None:
        """Cosines and sines (1, rows, width) of the rows' `positions` (axes, rows), in layers of this name, if any."""
        if self._modules.rotary is None:
            return None
        ids = torch.from_numpy(self._family.as_ids(positions)).to(self._device)
        rotary: Rotary = self._modules.rotary(like, ids, *(() if name is None else (name,)))
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
        logits = self._modules.capped(self._modules.chosen(hidden[wanted]).float())
        parts: Sequence[Tensor] = logits.split([rows.wanted for rows in batch])
        return parts


def _check_alike(bundle: Bundle, *, compiled: bool) -> None:
    """That layers which are to be `compiled` are alike, as what is compiled for some serves all.

    Raises InputError.
    """
    family, layers = bundle.manifest.family, range(bundle.manifest.decoder.layers)
    if compiled and any(family.keeps(layer) != KEYS_VALUES or family.decoding(layer) for layer in layers):
        raise InputError(f"{bundle.path} has layers of its own kind, which are not compiled; leave out --compile")


def _stretches(batch: Sequence[Rows]) -> list[Stretch]:
    stretches, first = [], 0
    for rows in batch:
        last, end = first + len(rows.tokens), rows.start + len(rows.tokens)
        sides = None if rows.sides is None else rows.sides.at(rows.start, end)
        stretches.append(Stretch(first, last, rows.slot, rows.start, rows.blocks, rows.drafted, sides))
        first = last
    return stretches
