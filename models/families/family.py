"""What every family of models answers for: how its images become pixels, and its prompts and tower rows from those.

A family is a frozen struct that stands in the manifest: its fields are one model's sizes, its methods the family's own
arithmetic. Nothing outside `cutline.models.families` knows a family by name.

A family never imports torch. What it says of a model in torch, it says with the modules and tensors that it is given.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cutline.models.images import Pixels, Size, lossless, read_header, size_fault

Count = Annotated[int, msgspec.Meta(ge=1, le=10**7)]
Spread = Annotated[float, msgspec.Meta(gt=0)]
Grid = tuple[int, int]  # rows and columns of what an image was cut into, as `Pixels.grid`
Arrays = dict[str, NDArray[Any]]
Attend = Callable[..., Any]  # torch's scaled_dot_product_attention


@dataclass(frozen=True, slots=True)
class Parts:
    """Where in a transformers model the layers of its line are: names of submodules of `model.model`.

    `image` and `connector` may be several modules; `tower` and `layers` hold one a layer. `decoder` has the embeddings,
    `layers`, the last norm and the rotary embedding; the head is `model.lm_head`.
    """

    image: tuple[str, ...]
    tower: str
    connector: tuple[str, ...]
    decoder: str


@dataclass(frozen=True, slots=True, eq=False)
class Positions:
    """Where the rotary embedding of a decoder sees each token: those of `prompt` (axes, n), and all that follow."""

    prompt: NDArray[np.int64]

    def at(self, first: int, last: int) -> NDArray[np.int64]:
        """Those (axes, last - first) of the tokens `[first, last)`; after the prompt all axes count on as one."""
        length = self.prompt.shape[1]
        ahead = int(self.prompt.max(initial=-1)) + 1 - length
        after = np.arange(max(first, length), max(last, length)) + ahead
        return np.hstack([self.prompt[:, first:last], np.tile(after, (len(self.prompt), 1))])


COUNTED = Positions(np.empty((1, 0), np.int64))  # one after the other from 0 on


class Family(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """The base of all families."""

    kinds: ClassVar[tuple[str, ...]]  # what transformers calls the models of this family
    answering: ClassVar[tuple[str, ...]]  # its classes of them that answer, of which a folder has one
    processors: ClassVar[tuple[str, ...]]  # its classes that turn images into what `preprocess` gives
    resample: ClassVar[Image.Resampling]  # the filter of `resize`
    parts: ClassVar[Parts]
    image_marker: ClassVar[str]  # stands for one image in a rendered template, and is repeated for each of its tokens
    markers: ClassVar[tuple[str, ...]]  # the special tokens that a tokenizer of this family must have
    named: ClassVar[Mapping[str, str]]  # what a tokenizer's settings may call them, and others that `expand` writes
    axes: ClassVar[int] = 1  # of a token's position; with several the decoder's graph takes its rotations from outside

    @classmethod
    @abstractmethod
    def of(cls, config: Any, processor: Mapping[str, Any]) -> Self:
        """The family of a transformers `config`, with all settings of its image processor and of what is around that.

        Raises ValueError, which says what does not run here, by the name of the setting and its value.
        """

    @abstractmethod
    def preprocess(self, image: Image.Image) -> Pixels:
        """An RGB image as the tower's pixels, the same bits as transformers' own processor gives."""

    @abstractmethod
    def grid(self, size: Size) -> Grid:
        """What `preprocess` cuts an image of `size` (width, height) into."""

    @abstractmethod
    def fitted(self, size: Size) -> Size:
        """The size (width, height) that `preprocess` first resizes an image to."""

    @abstractmethod
    def is_settled(self, size: Size) -> bool:
        """Whether an image of a size that came from `fitted` is left as it is when it comes again."""

    @abstractmethod
    def takes(self, grid: Grid) -> bool:
        """Whether any image could become `grid`."""

    @abstractmethod
    def tokens(self, grid: Grid) -> int:
        """Image tokens of an image, which is also how many rows the connector gives."""

    @abstractmethod
    def patches(self, grid: Grid) -> int:
        """Rows of an image within the tower."""

    @abstractmethod
    def expand(self, grid: Grid) -> str:
        """The text that one `image_marker` of a rendered template stands for."""

    @abstractmethod
    def positions(self, image_tokens: NDArray[np.bool_], grids: Sequence[Grid]) -> Positions:
        """The positions of a prompt whose `image_tokens` (n,) stand for the images that became `grids`.

        Raises InputError where they do not fit each other and the positions depend on that.
        """

    def rotations(self, positions: NDArray[np.int64]) -> Arrays:
        """What the decoder's graph takes beside rows at `positions` (axes, n): nothing where it turns them itself."""
        del positions
        return {}

    def as_ids(self, positions: Any) -> Any:
        """`positions` (axes, n), array or tensor, as transformers' decoder takes those of a batch of one."""
        return positions if self.axes == 1 else positions[:, None]

    @abstractmethod
    def runs(self, rows: Any, grids: Sequence[Grid]) -> list[tuple[Any, Arrays]]:
        """What the tower can run at once, of pixels or boundary rows of the images that became `grids`.

        `rows` is an array or a tensor. Each piece of it comes with what the tower takes beside it, by the names of the
        graph's inputs.
        """

    def slices(self, rows: Any, grids: Sequence[Grid]) -> list[tuple[Any, Arrays]]:
        """As `runs`, in the smallest pieces that the tower can run: what a piece becomes depends on it alone."""
        return self.runs(rows, grids)

    @abstractmethod
    def enter(self, modules: Sequence[Any], pixels: Any, beside: dict[str, Any]) -> Any:
        """Rows (n, width) of a piece of pixels, by the modules of `parts.image`; tensors all."""

    @abstractmethod
    def step(self, module: Any, index: int, rows: Any, beside: dict[str, Any], attend: Attend) -> Any:
        """Rows (n, width) after the tower's layer `index`."""

    @abstractmethod
    def leave(self, modules: Sequence[Any], rows: Any, beside: dict[str, Any]) -> Any:
        """Rows (tokens, width) for the decoder, by the modules of `parts.connector`."""

    @abstractmethod
    def as_given(self, images: Sequence[Pixels]) -> Arrays:
        """The images of one prompt as transformers' own models take them, by the names of their arguments."""

    @abstractmethod
    def example(self, seed: int) -> Pixels:
        """Noise as small as it may be for the tower to do all that it does with any image."""

    def settle(self, image: Image.Image) -> Image.Image:
        """The smallest picture of which `preprocess` makes exactly the Pixels of `image`: fitted already, or itself.

        The fitted one counts only where it has no more pixels, where `decode_image` takes its size, and where fitting
        it again changes nothing.
        """
        first = self.fitted(image.size)
        larger = math.prod(first) > math.prod(image.size)
        if larger or size_fault(first) is not None or not self.is_settled(first):
            return image
        return self.resize(image, first)

    def shrink(self, data: bytes, image: Image.Image) -> bytes:
        """The fewest bytes that a worker turns into exactly the Pixels of `image`.

        `image` is `decode_image(data)`, or what `settle` makes of it. The choice is between `data`, where it travels as
        it is, and the settled image in lossless WebP (smaller than PNG on cards and photographs alike).
        """
        settled = self.settle(image)
        if not read_header(data).travels:
            return lossless(settled)
        return data if settled is image else min(data, lossless(settled), key=len)

    @classmethod
    def resize(cls, image: Image.Image, size: Size) -> Image.Image:
        """`image` at `size`, by the family's filter."""
        return image.resize(size, cls.resample)

    @classmethod
    def _checked(cls, **fields: Any) -> Self:
        """The family of these fields. Raises ValueError for one out of its bounds."""
        try:
            return msgspec.convert(fields | {"kind": cls.__struct_config__.tag}, cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"sizes that do not run here: {error}") from None


def channels(name: str, value: Any) -> tuple[float, ...]:
    """A setting of an image processor that has a number for each of three channels, or one for all of them."""
    each = (value,) * 3 if isinstance(value, int | float) else tuple(value)
    if len(each) != 3:
        raise ValueError(f"{name} {value!r}, where three numbers are supported")
    return each
