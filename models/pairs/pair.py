"""A drafter and its target: what both share, and the target's part in the bundle of a drafter that is unlike it.

A drafter that shares tokens, template and image processing is asked with the target's own prompt. Of any other, the
bundle holds the target's tokenizer, template and description as well: what a client asks and gets is the target's, and
the drafter prepares the same question for itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from cutline.core.storage.seal import seal
from cutline.models.bundle import Bundle, Manifest, manifest_of
from cutline.models.prompt import TEMPLATE, PromptBuilder
from cutline.models.vocabulary import TOKENIZER, Vocabulary

PREFIX = "target-"  # of the files that are the target's
DESCRIPTION = f"{PREFIX}manifest.json"


@dataclass(frozen=True, slots=True)
class Shared:
    """What a drafter and its target share: the tokens of an answer, the words around a question, what images become."""

    tokens: bool
    template: bool
    images: bool

    @property
    def prompt(self) -> bool:
        """Whether both read the same prompt."""
        return self.tokens and self.template and self.images

    @property
    def told(self) -> str:
        """What is not shared, and what follows from it."""
        if self.prompt:
            return "the drafter reads its target's prompts"
        parts = ["tokens"] * (not self.tokens) + ["template"] * (not self.template) + ["images"] * (not self.images)
        own = f"the drafter has its own {' and '.join(parts)}, and prepares every question for itself"
        return own if self.tokens else f"{own}; what it says is put into its target's tokens"

    @property
    def follows(self) -> tuple[str, ...]:
        """What follows from it for drafts and answers, in words."""
        if self.prompt:
            return ("what the drafter drafts is sent as it is, greedy or sampled",)
        if self.tokens:
            return ("what it drafts is sent as it is", "it reads a prompt of its own length, which takes its own time")
        return (
            "the last word of a draft is held back until the next begins, so drafts are a token or two shorter",
            "above temperature 0 it drafts its likeliest tokens, of which fewer are right",
            "answers of the drafter alone have no logprobs, and take no logit_bias",
        )


WHOLE = Shared(tokens=True, template=True, images=True)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What clients see: a target's `manifest` and `prompts` under the drafter's name, `shared` as far as said."""

    manifest: Manifest
    prompts: PromptBuilder
    shared: Shared


def shared_by(drafter: Manifest, files: Mapping[str, bytes], target: Manifest, theirs: Mapping[str, bytes]) -> Shared:
    """What two models share by their manifests, and the content of their tokenizer and template."""
    tokens = files[TOKENIZER] == theirs[TOKENIZER] and set(drafter.stop_tokens) == set(target.stop_tokens)
    # Of other tokens the one that stands for an image has another number, whatever becomes of the image.
    images = drafter.family.is_alike(target.family) and (not tokens or drafter.image_token == target.image_token)
    return Shared(tokens=tokens, template=files[TEMPLATE] == theirs[TEMPLATE], images=images)


def shared_in(drafter: Bundle) -> Shared:
    """What a drafter shares with the target that it was made for, by the files of its bundle. Raises BundleError."""
    return WHOLE if DESCRIPTION not in drafter.manifest.files else _files_of(drafter).shared


def target_files(target: Bundle) -> dict[str, bytes]:
    """The files that the bundle of a drafter unlike its `target` holds of it. Raises BundleError."""
    # Neither prices nor weights: of the target's files none is there.
    described = msgspec.structs.replace(target.manifest, files={}, calibration=None)
    files = {PREFIX + name: content for name, content in companions(target).items()}
    return files | {DESCRIPTION: seal(msgspec.json.format(msgspec.json.encode(described), indent=2) + b"\n")}


def served_model(drafter: Bundle) -> ServedModel:
    """What an agent with this drafter serves, or one without that has a target's bundle. Raises BundleError."""
    manifest = drafter.manifest
    if manifest.role == "target":  # its calibration is what its cuts cost, and no gate's
        manifest = msgspec.structs.replace(manifest, target=manifest.identity, calibration=None)
    if DESCRIPTION not in manifest.files:
        return ServedModel(manifest, PromptBuilder.open(drafter), WHOLE)
    found = _files_of(drafter)
    served = msgspec.structs.replace(
        found.target,
        name=manifest.name,
        role=manifest.role,
        precision=manifest.precision,
        target=manifest.target,
        identity=manifest.identity,
        calibration=manifest.calibration,
    )
    prompts = PromptBuilder.read(served, Vocabulary.read(found.files[TOKENIZER]), found.files[TEMPLATE])
    return ServedModel(served, prompts, found.shared)


@dataclass(frozen=True, slots=True)
class _Target:
    """A target as the bundle of a drafter unlike it holds it: its manifest and files, and what both share."""

    target: Manifest
    files: Mapping[str, bytes]
    shared: Shared


def _files_of(drafter: Bundle) -> _Target:
    target = manifest_of(drafter.file(DESCRIPTION).read_bytes(), drafter.path)
    ours, theirs = (companions(drafter, prefix) for prefix in ("", PREFIX))
    return _Target(target, theirs, shared_by(drafter.manifest, ours, target, theirs))


def companions(bundle: Bundle, prefix: str = "") -> dict[str, bytes]:
    """The content of a bundle's tokenizer and template. Raises BundleError."""
    return {name: bundle.file(prefix + name).read_bytes() for name in (TOKENIZER, TEMPLATE)}
