"""Dual encoders beside transformers: a bundle, and what the model of the same folder gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from cutline.models.bundle import Precision
from cutline.models.encoders.bundle import EncoderBundle
from cutline.models.encoders.tokenizer import TOKENIZER
from cutline.models.export.encoders import export_encoder
from cutline.models.export.encoders.texts import PADDING
from cutline.models.export.quiet import quiet


@dataclass(frozen=True)
class OriginalEncoder:
    """transformers' own model of a folder, with its processors."""

    folder: Path

    @cached_property
    def model(self) -> Any:
        """The model, in fp32."""
        with quiet():
            return AutoModel.from_pretrained(self.folder, dtype=torch.float32, trust_remote_code=False).eval()

    @cached_property
    def images(self) -> Any:
        """Its image processor, on Pillow."""
        return AutoImageProcessor.from_pretrained(self.folder, backend="pil", trust_remote_code=False)

    @cached_property
    def texts(self) -> Any:
        """Its tokenizer; that of SigLIP 1 as its tokenizer.json says it."""
        with quiet():
            try:
                return AutoTokenizer.from_pretrained(self.folder, trust_remote_code=False)
            except ImportError:
                return PreTrainedTokenizerFast(tokenizer_file=str(self.folder / TOKENIZER), pad_token=PADDING)

    def pixels(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """What its tower takes of images."""
        return np.asarray(self.images(images=list(images), return_tensors="np")["pixel_values"])

    def ids(self, texts: Sequence[str]) -> dict[str, Any]:
        """What its tower takes of texts, as transformers' own pipeline gives it them."""
        length = self.model.config.text_config.max_position_embeddings
        siglip = self.model.config.model_type == "siglip"
        how: dict[str, Any] = {"padding": "max_length", "max_length": length} if siglip else {"padding": True}
        given = self.texts(list(texts), return_tensors="pt", **how)
        return {"input_ids": given["input_ids"]} if siglip else dict(given)

    def answer(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Any:
        """Its output for images and texts: `image_embeds`, `text_embeds`, `logits_per_image`."""
        with torch.inference_mode():
            return self.model(pixel_values=torch.from_numpy(self.pixels(images)), **self.ids(texts))

    def probabilities(self, images: Sequence[Image.Image], texts: Sequence[str]) -> NDArray[np.float32]:
        """The scores of images and texts, as its pipeline gives them."""
        logits = self.answer(images, texts).logits_per_image
        made = logits.sigmoid() if self.model.config.model_type == "siglip" else logits.softmax(dim=-1)
        return np.asarray(made)


def exported(folder: Path, out: Path, precision: Precision = "fp32") -> EncoderBundle:
    """The bundle of a folder, exported without a word."""
    return export_encoder(folder, out, precision=precision, name=folder.name, progress=lambda step: None)
