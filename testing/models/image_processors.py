"""transformers' own image processors of families, as they run without torchvision: none is built for this torch.

LFM2-VL's needs it. Its file is run as it is, on a base class that does the two things which it leaves to torchvision:
resizing, by Pillow's filter, and normalising. What it cuts, in which order, and how pixels become patches is its own.
"""

from __future__ import annotations

import json
from importlib.abc import SourceLoader
from importlib.util import find_spec, module_from_spec, spec_from_loader
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor

from cutline.models.export.quiet import quiet
from cutline.models.families import Family


def image_processor(folder: Path, family: Family) -> Any:
    """That of a folder with a model of the `family`: on Pillow, with all that its settings say."""
    if family.processor_defaults is not None:
        return Lfm2VlPixels(json.loads((folder / "preprocessor_config.json").read_text()))
    with quiet():
        made = AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True, trust_remote_code=False)
    if "target_sizes" in made.model_input_names:
        return Unpacked(made)
    return Unfilled(made) if "image_position_ids" in made.model_input_names else made


class Unpacked:
    """A processor whose patches stand side by side (1, 3, patch, n * patch), one by one."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, images: list[Image.Image], **how: Any) -> dict[str, NDArray[np.float32]]:
        """The patches (n, 3 * patch * patch) of all `images`."""
        (packed,) = np.asarray(self._processor(images=images, **how)["pixel_values"])
        side = packed.shape[1]
        return {"pixel_values": packed.reshape(3, side, -1, side).transpose(2, 0, 1, 3).reshape(-1, 3 * side**2)}


class Unfilled:
    """A processor whose patches are padded to as many, without what pads them."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, images: list[Image.Image], **how: Any) -> dict[str, NDArray[np.float32]]:
        """The patches of all `images`."""
        made = self._processor(images=images, **how)
        return {"pixel_values": made["pixel_values"][(made["image_position_ids"] >= 0).all(-1)]}


class _Source(SourceLoader):
    """Loads a module from its `source`, which stands in the file `origin` nearly so."""

    def __init__(self, source: str, origin: str) -> None:
        self._source = source
        self._origin = origin

    def get_filename(self, fullname: str) -> str:
        return self._origin

    def get_data(self, path: str | bytes) -> bytes:
        del path
        return self._source.encode()


class PillowBackend:
    """What `TorchvisionBackend` does as far as that processor asks for it."""

    def __init__(self, **settings: Any) -> None:
        for name, value in settings.items():
            setattr(self, name, value)

    def resize(self, images: Tensor, size: Any, *, resample: int, **more: Any) -> Tensor:
        """Bytes (n, 3, height, width) resized."""
        del more
        pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        made = [np.array(one.resize((size.width, size.height), Image.Resampling(resample))) for one in pictures]
        return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)

    def rescale_and_normalize(self, images: Tensor, rescale: bool, factor: float, *rest: Any) -> Tensor:
        """In one step, with means and deviations of bytes."""
        normalize, *sides = rest
        assert rescale
        assert normalize
        mean, std = (torch.tensor(side)[:, None, None] * (1.0 / factor) for side in sides)
        return (images.to(torch.float32) - mean) / std


class Lfm2VlPixels:
    """That processor with the `settings` of a folder; called as any."""

    def __init__(self, settings: dict[str, Any]) -> None:
        found = find_spec("transformers.models.lfm2_vl")
        assert found is not None
        assert found.origin is not None
        source = (Path(found.origin).parent / "image_processing_lfm2_vl.py").read_text()
        for line in (
            "from torchvision.transforms.v2 import functional as tvF\n",
            "from ...image_processing_backends import TorchvisionBackend\n",
            "@auto_docstring\n",
        ):
            assert line in source
            source = source.replace(line, "")
        source = source.replace("from ...", "from transformers.")
        loader = _Source(source, found.origin)
        spec = spec_from_loader(__name__, loader)
        assert spec is not None
        module = module_from_spec(spec)
        theirs = vars(module)
        theirs.update(TorchvisionBackend=PillowBackend, tvF=SimpleNamespace())
        loader.exec_module(module)
        own, kinds = theirs["Lfm2VlImageProcessor"], theirs["Lfm2VlImageProcessorKwargs"]
        self.defaults = {name: value for name, value in vars(own).items() if name in kinds.__annotations__}
        self._settings = self.defaults | settings
        self._processor = own(**self._settings)

    def __call__(self, images: list[Image.Image], **how: Any) -> dict[str, NDArray[np.float32]]:
        """The patches of all pieces, without what pads them to as many."""
        del how
        tensors = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]
        settings = self._settings | {"do_resize": True, "return_tensors": None, "disable_grouping": None}
        made = self._processor._preprocess(tensors, **settings)
        real = made["pixel_attention_mask"].bool()
        return {"pixel_values": made["pixel_values"][real].numpy()}
