"""From a question to what the models take: pictures, pixels, and the prompt's tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from PIL import Image

from cutline.edge.keeping import LruCache
from cutline.edge.merging import shorten
from cutline.edge.progress import Prepared
from cutline.edge.question import Question
from cutline.edge.spans import check_cut
from cutline.errors import InputError, PromptError
from cutline.models.bundle import Bundle, Manifest
from cutline.models.images import MAX_PIXELS, Pixels, decode_image
from cutline.models.prompt import PromptBuilder

MAX_TOGETHER = 4 * MAX_PIXELS  # of a question's images: decoded, that many pixels take 200 MB
PICTURES_BYTES = 64 << 20  # of images that were asked about before: one of SmolVLM-256M's tiles and a photograph

Seen = tuple[Image.Image, Pixels]


class Preparer:
    """Prepares questions for a drafter with this manifest and, where there is one, the bundle of its target.

    `planned` says that mode `auto` may come to cut the target. Pictures that were asked about lately are not decoded
    again, unless every question is to be `fresh`. For any threads.
    """

    def __init__(
        self, manifest: Manifest, prompts: PromptBuilder, target: Bundle | None, *, planned: bool, fresh: bool = False
    ) -> None:
        self._manifest = manifest
        self._prompts = prompts
        self._target = target
        self._planned = planned
        self._fresh = fresh
        self._pictures: LruCache[bytes, Seen] = LruCache(0 if fresh else PICTURES_BYTES)

    def prepare(self, asked: Question) -> Prepared:
        """A question as the models take it. Raises InputError, BundleError."""
        manifest = self._manifest
        if asked.cut != "image":
            if self._target is None:
                raise InputError("a cut runs the target's first layers here; give its bundle with --target")
            check_cut(self._target, asked.cut)
        if asked.keep_image_tokens < 1.0 and manifest.family.axes > 1:
            raise InputError(f"{manifest.name} places image tokens in a plane, where none can be left out")
        names = tuple(_name(asked.tenant, file) for file in asked.images)
        found = [self._pictures.get(name) for name in names]
        pictures = _decoded(asked.images, found)
        # The prompt says whether there is room for them all, before much is computed.
        prompt = self._prompts.build(asked.messages, [manifest.family.grid(picture.size) for picture in pictures]).ids
        context = manifest.decoder.context
        if (asked.cut != "image" or self._planned) and self._target is not None:
            context = min(context, self._target.manifest.decoder.context)
        if len(prompt) >= context:
            raise PromptError(
                f"the prompt takes {len(prompt)} tokens, the target holds {context}; ask something shorter"
            )
        return Prepared(
            question=asked,
            images=tuple(pictures),
            pixels=tuple(map(self._pixels, names, pictures, found)),
            names=names,
            fresh=self._fresh,
            prompt=prompt,
            asked=shorten(prompt, manifest.image_token, asked.keep_image_tokens),
            limit=min(asked.max_tokens, context - len(prompt)),
        )

    def _pixels(self, name: bytes, picture: Image.Image, found: Seen | None) -> Pixels:
        if found is not None:
            return found[1]
        pixels = self._manifest.family.preprocess(picture)
        self._pictures.put(name, (picture, pixels), 3 * picture.width * picture.height + pixels.values.nbytes)
        return pixels


def _name(tenant: str, file: bytes) -> bytes:
    """What an image is kept under, for a tenant alone: whether another has asked about it does not show."""
    name = hashlib.sha256(f"{tenant}\0".encode())
    name.update(file)
    return name.digest()


def _decoded(files: Sequence[bytes], found: Sequence[Seen | None]) -> list[Image.Image]:
    """The pictures in image files, as far as they were not `found`. Raises ImageError, InputError."""
    pictures: list[Image.Image] = []
    left = MAX_TOGETHER
    for file, seen in zip(files, found, strict=True):
        pictures.append(decode_image(file) if seen is None else seen[0])
        left -= pictures[-1].width * pictures[-1].height
        if left < 0:
            raise InputError(f"the images have over {MAX_TOGETHER // 10**6} megapixels together; make them smaller")
    return pictures
