"""What families share whose tower is SigLIP's, and which see a picture as one square: Gemma 3 and PaliGemma."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from PIL import Image

from cutline.models.families.checks import channels
from cutline.models.families.family import Grid
from cutline.models.families.parts import Ops, Parts
from cutline.models.families.tiles import TileFamily
from cutline.models.images import Pixels, Size


class SiglipFamily(TileFamily, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A picture is stretched to one tile, whatever its proportions."""

    parts: ClassVar[Parts] = Parts(
        image=("vision_tower.embeddings",),
        tower="vision_tower.encoder.layers",
        connector=("vision_tower.post_layernorm", "multi_modal_projector"),
        decoder="language_model",
    )

    @classmethod
    def read(cls, config: Any, processor: Mapping[str, Any], *, tokens: int) -> dict[str, Any]:
        """The fields that these families have, with so many `tokens` a picture. Raises ValueError as `of` does."""
        vision = config.vision_config
        tile, patch = vision.image_size, vision.patch_size
        if not isinstance(tile, int) or not isinstance(patch, int):
            raise ValueError(f"image_size {tile!r} and patch_size {patch!r} in its vision_config, not one number each")
        if dict(processor["size"]) != {"height": tile, "width": tile}:
            raise ValueError(f"size {dict(processor['size'])!r} in its image processor, and a tower that sees {tile}")
        if (said := processor.get("image_seq_length") or tokens) != tokens:
            raise ValueError(f"image_seq_length {said!r} in its processor, and a tower that gives {tokens} a picture")
        return {
            "tile": tile,
            "patch": patch,
            "tile_tokens": tokens,
            "mean": channels("image_mean", processor["image_mean"]),
            "std": channels("image_std", processor["image_std"]),
        }

    def preprocess(self, image: Image.Image) -> Pixels:
        """The one tile (1, 3, tile, tile)."""
        return Pixels(self.normalised(self.cut(self.resize(image, self.fitted(image.size)))), (0, 0))

    def grid(self, size: Size) -> Grid:
        """That of one tile."""
        del size
        return (0, 0)

    def fitted(self, size: Size) -> Size:
        """That of the tile."""
        del size
        return self.tile, self.tile

    def is_settled(self, size: Size) -> bool:
        """Whether `size` is that of the tile."""
        return size == (self.tile, self.tile)

    def takes(self, grid: Grid) -> bool:
        """Whether it is that of one tile."""
        return grid == (0, 0)

    def leave(self, modules: Sequence[Any], rows: Any, beside: dict[str, Any], ops: Ops) -> Any:
        """The tower's last norm, then the projection."""
        del beside, ops
        norm, projector = modules
        return projector(norm(self.by_tile(rows))).flatten(0, 1)
