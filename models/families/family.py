"""The interface of a family of models: image preprocessing, prompt expansion, positions, and the vision tower.

A family is a frozen struct in the manifest: its fields are the sizes of one model, its methods the arithmetic that all
models of the family share. Nothing outside `cutline.models.families` knows a family by name.

A family never imports torch; it works on the modules and tensors that it is given.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cutline.models.families.layer_state import KEYS_VALUES, CrossKeys, LayerMemory, LayerState
from cutline.models.families.parts import Decoding, Ops, Parts, TowerSizes
from cutline.models.families.positions import Positions
from cutline.models.images import Pixels, Size, lossless, read_header, size_fault
from cutline.models.layerline import LayerLine
from cutline.models.sight import CAUSAL, Sight
from cutline.models.tools import ToolSyntax
from cutline.models.video import VideoMode

Count = Annotated[int, msgspec.Meta(ge=1, le=10**7)]
Index = Annotated[int, msgspec.Meta(ge=0)]
Spread = Annotated[float, msgspec.Meta(gt=0)]
PLACES = "places"  # the input of a decoder's graph that says where rows are placed: see `Family.places_rows`

Grid = tuple[int, int]  # rows and columns of an image's tiles or patches, as `Pixels.grid`
Arrays = dict[str, NDArray[Any]]


class Family(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """The base of all families.

    A row of a boundary has the residual stream, and behind it in further columns the streams that later layers take
    beside it: in the tower the rows of the `taps` so far, in the decoder what the connector made of them, or the row
    with which a token entered. On the wire each stream is a row of its own; `streams` counts them.
    """

    kinds: ClassVar[tuple[str, ...]]  # transformers' `model_type`s of this family
    answering: ClassVar[tuple[str, ...]]  # transformers' classes of models that generate text
    processors: ClassVar[tuple[str, ...]]  # transformers' image processors that equal `preprocess`
    # Settings of the image processor with transformers' defaults, where its class needs torchvision, which is not here.
    processor_defaults: ClassVar[Mapping[str, Any] | None] = None
    resample: ClassVar[Image.Resampling]  # the filter of `resize`
    parts: ClassVar[Parts]
    image_marker: ClassVar[str]  # stands for an image in a rendered template; repeated for each of its tokens
    markers: ClassVar[tuple[str, ...]]  # special tokens that a tokenizer of this family must have
    named: ClassVar[Mapping[str, str]]  # settings of a tokenizer that name tokens, and the values that they must have
    tools: ClassVar[ToolSyntax | None] = None  # how its models call tools, if their template has any
    scales: ClassVar[bool] = False  # whether a smaller image has fewer image tokens: see `within`
    image_token: ClassVar[str | None] = None  # stands in an expanded prompt for each row; None for the marker itself
    apart: ClassVar[frozenset[str]] = frozenset()  # fields of the tower or the decoder alone: see `is_alike`
    template: ClassVar[str | None] = None  # the chat template of models that come without one
    of_one_size: ClassVar[bool] = False  # whether all pieces of `runs` are of one size, though they come with others
    has_sides: ClassVar[bool] = False  # whether images stand beside the prompt, for layers that keep CrossKeys
    unchosen: ClassVar[int] = 0  # tokens behind those that the head chooses from, which only a prompt may have
    most_images: ClassVar[int | None] = None  # that a prompt may have
    images_first: ClassVar[bool] = False  # whether images only stand before all text
    has_turns: ClassVar[bool] = True  # whether anything may stand before the question: turns, instructions
    needs_question: ClassVar[bool] = True  # whether a picture must come with words
    axes: ClassVar[int] = 1  # of a token's position
    normalises: ClassVar[bool] = True  # whether the image processor must, beside bringing bytes to 0..1
    declined: ClassVar[Mapping[str, str]] = {}  # kinds that are like `kinds` and do not run, and why

    @classmethod
    @abstractmethod
    def of(cls, config: Any, processor: Mapping[str, Any]) -> Self:
        """The family of a transformers `config`, and of all settings of its processor and image processor.

        Raises ValueError with the name and value of a setting that is not supported.
        """

    @classmethod
    def tower_sizes(cls, config: Any) -> TowerSizes:
        """The sizes of the tower of a transformers `config`."""
        vision = config.vision_config
        return TowerSizes(vision.num_hidden_layers, vision.hidden_size, vision.num_attention_heads)

    @classmethod
    def usual_layer(cls, text: Any) -> Any:
        """The config of a layer of the decoder `text` whose sizes are its own, where those of some layers differ."""
        return text

    @property
    def taps(self) -> tuple[int, ...]:
        """The tower's layers whose rows go on beside the residual stream.

        The connector makes of each as many rows as there are image tokens. The first one's are added to the residual
        stream after the decoder's first layer, the second one's after its second layer, and so on.
        """
        return ()

    def is_alike(self, other: Family) -> bool:
        """Whether both make the same pixels, grids, image tokens and positions of the same images.

        Drafter and target must be alike. Their towers and decoders may differ, in the fields that are `apart`.
        """
        if type(self) is not type(other):
            return False
        ours, theirs = (msgspec.structs.asdict(one) for one in (self, other))
        return all(value == theirs[name] for name, value in ours.items() if name not in self.apart)

    def streams(self, line: LayerLine, cut: str) -> int:
        """How many streams cross a `cut` after `image`: the residual stream, and those that go on beside it."""
        if cut in line.deep_cuts or cut == "decoder.0":
            layer = line.decoder_layer(cut)
            entering = self.layer_inputs > 0 and 0 < layer < line.decoder
            return 1 + max(0, len(self.taps) - layer) + entering
        return 1 + sum(tap < line.tower_layer(cut) for tap in self.taps)

    @abstractmethod
    def preprocess(self, image: Image.Image) -> Pixels:
        """An RGB image as the tower's pixels, bit for bit as transformers' own processor gives them."""

    @abstractmethod
    def grid(self, size: Size) -> Grid:
        """The grid into which `preprocess` cuts an image of `size` (width, height)."""

    @abstractmethod
    def fitted(self, size: Size) -> Size:
        """The size (width, height) that `preprocess` first resizes an image to."""

    def within(self, size: Size, tokens: int) -> Size | None:
        """The largest size of the proportions of `size` with so many image tokens at most; None where none has.

        That is so of all families whose image tokens do not follow an image's size.
        """
        del size, tokens
        return None

    @abstractmethod
    def is_settled(self, size: Size) -> bool:
        """Whether `fitted` leaves `size`, one of its results, unchanged."""

    @abstractmethod
    def takes(self, grid: Grid) -> bool:
        """Whether `grid` is that of some image."""

    @abstractmethod
    def tokens(self, grid: Grid) -> int:
        """The number of image tokens of an image."""

    def rows(self, grid: Grid) -> int:
        """The number of rows of an image after the connector: one an image token, unless it has sides."""
        return self.tokens(grid)

    def takes_sides(self, layer: int, layers: int) -> bool:
        """Whether a layer of the decoder from `layer` on, of so many, takes the rows beside the prompt."""
        return any(isinstance(self.keeps(one), CrossKeys) for one in range(layer, layers))

    @abstractmethod
    def patches(self, grid: Grid) -> int:
        """The number of rows of an image as it enters the tower."""

    def merged(self, layer: int) -> int:
        """How many patches a row stands for before the tower's layer of this index, and at the end behind all of them.

        One, if no layer makes one row of several.
        """
        del layer
        return 1

    def crossing(self, line: LayerLine, cut: str, grid: Grid) -> int:
        """The number of rows of an image, of each stream, that cross a `cut` from `vision.0` to `decoder.0`."""
        if cut == "decoder.0":
            return self.rows(grid)
        return self.patches(grid) // self.merged(line.tower_layer(cut))

    def seen(self, grid: Grid) -> int:
        """The number of rows that a row of an image sees within the tower: all of them, if not said otherwise."""
        return self.patches(grid)

    @abstractmethod
    def expand(self, grid: Grid, number: int) -> str:
        """The text that replaces the `image_marker` of an image in a rendered template.

        It is the prompt's image of this `number`, from 0; the pieces of a video that stand together have one.
        """

    def positions(self, image_tokens: NDArray[np.bool_], grids: Sequence[Grid], times: Sequence[int] = ()) -> Positions:
        """The positions of a prompt in which `image_tokens` (n,) marks the tokens of images with these `grids`.

        They count up from 0, for text and images alike, if not said otherwise. Pieces of videos may stand at other
        `times` than their first ones; without any, all are 0. Raises InputError if the two do not fit and the positions
        depend on it.
        """
        del grids, times
        return Positions(np.arange(len(image_tokens))[None])

    def read_as(self, ids: Any) -> Any:
        """The tokens (n,), array or tensor, as the embeddings have them: some may stand for what is not text."""
        return ids

    @property
    def layer_inputs(self) -> int:
        """How wide a row is that every layer of the decoder is given for each token, beside its own; 0 for none."""
        return 0

    def give(self, modules: Sequence[Any], own: Any, rows: Any) -> Any:
        """What all layers are given (n, layers, `layer_inputs`), by the modules of `parts.giving` behind the table.

        `own` (n, layers * `layer_inputs`) are the tokens' rows of that, `rows` (n, width) those with which they enter.
        """
        raise NotImplementedError

    def sight(self, layer: int) -> Sight:
        """What rows see in the decoder's layer of this index: all that stands before them, if not said otherwise."""
        del layer
        return CAUSAL

    def keeps(self, layer: int) -> LayerState:
        """What the decoder's layer of this index keeps of a session: keys and values, if not said otherwise."""
        del layer
        return KEYS_VALUES

    def mix(self, module: Any, rows: Any, memory: LayerMemory, ops: Ops) -> Any:
        """Rows (n, width) in place of attention's, by the `mixer` of a layer that keeps no keys; all are tensors."""
        raise NotImplementedError

    def biases(self, layers: int) -> dict[str, Sight]:
        """The inputs of a graph of the first `layers` that say what rows see: none where all layers are causal.

        One for each sight of them, added to the scores of attention in its layers: (1, 1, n, positions) float32.
        """
        sights = list(dict.fromkeys(map(self.sight, range(layers))))
        return {} if sights == [CAUSAL] else {bias_name(sight): sight for sight in sights}

    @property
    def places_rows(self) -> bool:
        """Whether rows are told their places as they enter the decoder, by `placed`; else layers tell them."""
        return self.parts.placing is not None

    def placed(self, module: Any, rows: Any, positions: Any) -> Any:
        """Rows (n, width) at `positions` (n,), by the module that is `parts.placing`; rows at -1 stay as they are."""
        raise NotImplementedError

    @property
    def ungraphed(self) -> str | None:
        """Why no graph of the decoder is made for a device, which then runs no layer of it; None where one is."""
        return "attends to pictures beside the prompt" if self.has_sides else None

    def tower_weights(self, index: int, modules: Sequence[Any]) -> int:
        """How many weights a row is multiplied with in the tower's layer of this index, which is these `modules`."""
        del index
        return sum(weight.numel() for module in modules for weight in module.parameters())

    def weights(self, layer: Any) -> int:
        """How many weights a row is multiplied with in a layer of the decoder, which is a module."""
        return sum(weight.numel() for weight in layer.parameters())

    def decoding(self, layer: int) -> Decoding | None:
        """What runs the decoder's layer of this index, if that is not transformers' own module by itself.

        The module must be told where keys are kept and what is seen, which those do that ask transformers' registry for
        their attention.
        """
        del layer
        return None

    def rotary(self, layer: int) -> str | None:
        """The name by which transformers' rotary embedding knows the decoder's layer; None if it is one for all."""
        del layer
        return None

    def rotations(self, positions: NDArray[np.int64]) -> Arrays:
        """The rotations at `positions` (axes, n) as inputs of the decoder's graph; none if the graph has a table.

        Of a decoder that is traced they are `cos` and `sin` (n, head_dim), with the name of `rotary` if it has several.
        """
        del positions
        return {}

    def as_ids(self, positions: Any) -> Any:
        """`positions` (axes, n), array or tensor, as `position_ids` of transformers' decoder for a batch of one."""
        return positions if self.axes == 1 else positions[:, None]

    @abstractmethod
    def runs(self, rows: Any, grids: Sequence[Grid]) -> list[tuple[Any, Arrays]]:
        """Pixels or boundary `rows` (array or tensor) of images with these `grids`, in pieces for one run of the tower.

        Each piece comes with the tower's other inputs by name.
        """

    def slices(self, rows: Any, grids: Sequence[Grid]) -> list[tuple[Any, Arrays]]:
        """As `runs`, in the smallest pieces that are independent of each other."""
        return self.runs(rows, grids)

    @abstractmethod
    def enter(self, modules: Sequence[Any], pixels: Any, beside: dict[str, Any]) -> Any:
        """Rows (n, width) of a piece of `pixels`, by the modules of `parts.image`; all are tensors."""

    @abstractmethod
    def step(self, module: Any, index: int, rows: Any, beside: dict[str, Any], ops: Ops) -> Any:
        """Rows (n, columns) after the tower's layer `index`: its own, and those of the taps so far."""

    @abstractmethod
    def leave(self, modules: Sequence[Any], rows: Any, beside: dict[str, Any], ops: Ops) -> Any:
        """Rows (tokens, columns) for the decoder, by the modules of `parts.connector`: one stream, and one a tap."""

    @abstractmethod
    def as_given(self, images: Sequence[Pixels]) -> Arrays:
        """The images of one prompt as keyword arguments of transformers' own models."""

    def features(self, base: Any, images: dict[str, Any]) -> list[Any]:
        """What transformers' own `base` model makes of images, as `as_given` has them: one stream, and one a tap.

        A stream is a tensor of all images' rows, or several of some.
        """
        found = base.get_image_features(**images)
        return [found.pooler_output, *(getattr(found, "deepstack_features", None) or ())]

    def given_ids(self, ids: NDArray[np.int64], image_tokens: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The tokens (n,) of a prompt as transformers' own models take them; some have none for images."""
        del image_tokens
        return ids

    def token_types(self, image_tokens: NDArray[np.bool_], grids: Sequence[Grid]) -> Arrays:
        """Where the image tokens of a prompt are (1, n), as keyword arguments of transformers' own models."""
        del image_tokens, grids
        return {}

    @abstractmethod
    def example(self, seed: int) -> Pixels:
        """A noise image, as small as possible while every part of the tower's arithmetic is used."""

    @property
    def video(self) -> VideoMode | None:
        """How models of this family look at videos; None where they look at frames as at images."""
        return None

    def piece_grid(self, size: Size) -> Grid | None:
        """The grid of a piece of a video whose strip has this `size`; None where no piece's strip has."""
        del size
        return None

    def piece_pixels(self, strip: Image.Image) -> Pixels:
        """The strip of a piece of a video, whose size has a `piece_grid`, as the tower's pixels: nothing is resized."""
        raise NotImplementedError

    def settle(self, image: Image.Image) -> Image.Image:
        """The smallest image with the same Pixels as `image`: the fitted one, or `image` itself.

        The fitted one must have no more pixels, a size that `decode_image` accepts, and be unchanged by fitting again.
        """
        first = self.fitted(image.size)
        larger = math.prod(first) > math.prod(image.size)
        if larger or size_fault(first) is not None or not self.is_settled(first):
            return image
        return self.resize(image, first)

    def shrink(self, data: bytes, image: Image.Image) -> bytes:
        """The smallest file with exactly the Pixels of `image`, which is `decode_image(data)` or its `settle`.

        It is `data`, if a worker can read that, or the settled image as lossless WebP, which is smaller than PNG for
        cards and photographs.
        """
        settled = self.settle(image)
        if not read_header(data).travels:
            return lossless(settled)
        return data if settled is image else min(data, lossless(settled), key=len)

    @classmethod
    def resize(cls, image: Image.Image, size: Size) -> Image.Image:
        """`image` resized with the family's filter."""
        return image.resize(size, cls.resample)

    @classmethod
    def _checked(cls, **fields: Any) -> Self:
        """A family with these fields. Raises ValueError for a field out of its bounds."""
        try:
            return msgspec.convert(fields | {"kind": cls.__struct_config__.tag}, cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"sizes that do not run here: {error}") from None


def bias_name(sight: Sight) -> str:
    """The input of a decoder's graph that says what rows see in layers of a `sight`."""
    return f"bias.{sight.window}.{sight.blocks}"
