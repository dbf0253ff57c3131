"""The target unsplit, run by transformers' own `generate`: what every mode's answer is held against."""

from __future__ import annotations

import torch

from cutline.cloud.loading import load_model
from cutline.models.bundle import Bundle
from cutline.models.images import decode_image
from cutline.models.prompt import PromptBuilder, question


class Reference:
    """The target of a bundle, whole, in this process."""

    def __init__(self, bundle: Bundle) -> None:
        self.model = load_model(bundle)
        self._manifest = bundle.manifest
        self._prompts = PromptBuilder.open(bundle)

    @torch.inference_mode()
    def answer(self, image: bytes, text: str, *, max_tokens: int = 64) -> tuple[int, ...]:
        """The greedy answer's token ids, the one that ends it included."""
        pixels = self._manifest.family.preprocess(decode_image(image))
        prompt = self._prompts.build([question(text)], [pixels.grid]).ids
        ids = self.model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            pixel_values=torch.from_numpy(pixels.values)[None],
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=list(self._manifest.stop_tokens),  # config.json may name others
        )
        return tuple(ids[0, len(prompt) :].tolist())

    def text(self, ids: tuple[int, ...]) -> str:
        """The text of an answer."""
        return self._prompts.vocabulary.decode(ids).strip()
