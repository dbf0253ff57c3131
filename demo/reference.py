"""The target unsplit, run by transformers' own `generate`: what every mode's answer is held against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cutline.cloud.model.loader import load_model
from cutline.core.conversation import Message, question
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image
from cutline.models.prompt import PromptBuilder


class Reference:
    """The target of a bundle, whole, in this process."""

    def __init__(self, bundle: Bundle) -> None:
        self.model = load_model(bundle)
        self._manifest = bundle.manifest
        self._prompts = PromptBuilder.open(bundle)

    def answer(self, image: bytes, text: str, *, max_tokens: int = 64) -> tuple[int, ...]:
        """The greedy answer's token ids, the one that ends it included, to a question about an image."""
        return self.converse((question(text),), (image,), max_tokens=max_tokens)

    @torch.inference_mode()
    def converse(
        self, messages: Sequence[Message], images: Sequence[bytes], *, max_tokens: int = 64
    ) -> tuple[int, ...]:
        """The same for a conversation, whose `images` (files' bytes) are in the order of its image parts."""
        pixels = [self._manifest.family.preprocess(decode_image(image)) for image in images]
        prompt = self._prompts.build(messages, [one.grid for one in pixels]).ids
        shown = (
            {"pixel_values": torch.from_numpy(np.concatenate([one.values for one in pixels]))[None]} if pixels else {}
        )
        ids = self.model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            **shown,
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=list(self._manifest.stop_tokens),  # config.json may name others
        )
        return tuple(ids[0, len(prompt) :].tolist())

    def text(self, ids: tuple[int, ...]) -> str:
        """The text of an answer."""
        return self._prompts.vocabulary.decode(ids).strip()
