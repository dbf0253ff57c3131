"""The questions of a drafter that is unlike its target: prepared for itself, and answered in the target's tokens."""

from __future__ import annotations

import msgspec

from cutline.core.request import Request
from cutline.edge.generation.generation import Prepared
from cutline.edge.generation.preprocess import Preparer
from cutline.edge.inference.drafter import DraftSource
from cutline.edge.inference.retokenized_drafter import RetokenizedConversation
from cutline.errors import InputError, PromptError
from cutline.models.bundle import Bundle
from cutline.models.pairs.pair import ServedModel
from cutline.models.prompt import PromptBuilder


class CannotDraft(PromptError):
    """A question that the drafter does not take and its target does."""


class OwnQuestions:
    """Questions put to a `drafter` that reads other prompts than the model that is `served`; for any threads."""

    def __init__(self, drafter: Bundle, served: ServedModel, *, fresh: bool = False) -> None:
        self._manifest = drafter.manifest
        self._served = served
        self._prompts = PromptBuilder.open(drafter)
        self._preparer = Preparer(self._manifest, self._prompts, None, planned=False, fresh=fresh)

    def prepare(self, request: Request, *, likely: bool) -> Prepared:
        """The question as the drafter takes it. Raises CannotDraft.

        What is `likely` is drafted for an answer that others choose: they have other noise for a text of other tokens.
        """
        sampling = request.sampling
        if not self._served.shared.tokens:  # what names tokens names the target's
            temperature = 0.0 if likely else sampling.temperature
            sampling = msgspec.structs.replace(sampling, stop_token_ids=(), logit_bias=(), temperature=temperature)
        own = msgspec.structs.replace(request, sampling=sampling, cut="image", keep_image_tokens=1.0, image_tokens=None)
        try:
            return self._preparer.prepare(own)
        except InputError as error:
            raise CannotDraft(f"the drafter cannot be asked: {error}") from error

    def retokenized(self, drafting: DraftSource) -> DraftSource:
        """What it drafts in the target's tokens."""
        if self._served.shared.tokens:
            return drafting
        return RetokenizedConversation(
            drafting,
            own=self._prompts.vocabulary,
            target=self._served.prompts.vocabulary,
            own_stops=self._manifest.stop_tokens,
            stop=self._served.manifest.stop_tokens[0],
        )
