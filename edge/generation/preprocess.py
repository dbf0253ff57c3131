"""From a question to what the models take: pictures, pixels, and the prompt's tokens."""

from __future__ import annotations

import hashlib
import math
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec
from PIL import Image

from cutline.core.conversation import ImagePart, Message, details_of
from cutline.core.lru_cache import LruCache
from cutline.core.request import Request
from cutline.edge.generation.generation import Prepared
from cutline.edge.inference.target_prefix import check_cut
from cutline.edge.inference.token_merging import shorten
from cutline.edge.video.views import View, viewed
from cutline.errors import ImageError, InputError, PromptError
from cutline.models.bundle import Bundle, Manifest
from cutline.models.decode_budget import DECODING
from cutline.models.families import Grid
from cutline.models.images import MAX_PIXELS, Header, Pixels, Size, decode_image, lossless, read_header
from cutline.models.prompt import PromptBuilder
from cutline.models.video import strip

if TYPE_CHECKING:  # its library is loaded where somebody asks for it
    from cutline.models.law.grammars import CompiledConstraint, Grammars

MAX_TOGETHER = 4 * MAX_PIXELS  # of a question's images: they are decoded one by one, and others wait meanwhile
MAX_PACKED = MAX_PIXELS // 4  # of a picture that is written anew as it is
LOW_TOKENS = 324  # of an image in low detail: what 512 by 512 pixels are in tokens of 28 by 28
PREVIEW = 256  # pixels on a side
PICTURES_BYTES = 64 << 20  # of images that were asked about before: one of SmolVLM-256M's tiles and a photograph


@dataclass(frozen=True, slots=True, eq=False)
class SeenImage:
    """What is kept of an image that was decoded.

    `picture` is as small as it may be for the same `pixels`; where it is only a preview, `file` is what travels.
    """

    header: Header
    picture: Image.Image
    pixels: Pixels
    file: bytes | None = None

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return 4 * math.prod(self.picture.size) + self.pixels.values.nbytes + len(self.file or b"")

    def pixels_at(self, time: int | None) -> Pixels:
        """The pixels, of a piece of a video at its `time`."""
        return self.pixels if time is None else replace(self.pixels, time=time)


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    """What one `view` needs: its `files` and their `headers`, and the `budget` of its tokens, if it has one."""

    view: View
    files: tuple[bytes, ...]
    headers: tuple[Header, ...]
    budget: int | None
    tenant: str

    @property
    def name(self) -> bytes:
        """What it is kept under, for a tenant alone: whether another has asked about it does not show."""
        looked = "" if self.view.strip is None else f"{self.view.strip}{self.view.frames}"
        name = hashlib.sha256(f"{self.tenant}\0{self.budget or ''}\0{looked}".encode())
        for file in self.files:
            name.update(file if looked == "" else hashlib.sha256(file).digest())
        return name.digest()

    @property
    def source(self) -> bytes | None:
        """The image's file; None of a piece."""
        return self.files[0] if self.view.strip is None else None


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
        self._grammars: Grammars | None = None
        self._turn = threading.Lock()
        self._pictures: LruCache[bytes, SeenImage] = LruCache(0 if fresh else PICTURES_BYTES)

    def prepare(self, asked: Request) -> Prepared:
        """A question as the models take it. Raises InputError, BundleError."""
        manifest = self._manifest
        if asked.cut != "image":
            if self._target is None:
                raise InputError("a cut runs the target's first layers here; give its bundle with --target")
            check_cut(self._target, asked.cut)
        if asked.keep_image_tokens < 1.0 and (manifest.family.axes > 1 or manifest.family.has_sides):
            where = "places image tokens in a plane" if manifest.family.axes > 1 else "has one token for an image"
            raise InputError(f"{manifest.name} {where}, where none can be left out")
        asked = self._served(asked)
        asked.sampling.check_tokens(manifest.decoder.vocabulary)
        compiled = self._compiled(asked)
        headers = list(map(read_header, asked.images))
        if sum(math.prod(one.size) for one in headers) > MAX_TOGETHER:
            raise InputError(f"the images have over {MAX_TOGETHER // 10**6} megapixels together; make them smaller")
        looked = viewed(asked.messages, [one.size for one in headers], manifest.family)
        budgets = self._budgets(asked)
        glances = [
            Glance(
                view=view,
                files=tuple(asked.images[index] for index in view.images),
                headers=tuple(headers[index] for index in view.images),
                budget=budgets[view.images[0]] if view.strip is None else None,
                tenant=asked.tenant,
            )
            for view in looked.views
        ]
        # Headers say whether there is room for them all, before any is decoded.
        expected = list(map(self._grid, glances))
        prompt = self._prompt(asked, looked.messages, expected)
        seen = tuple(map(self._see, glances))
        grids = [one.pixels.grid for one in seen]
        if grids != expected:  # a PNG had said behind its pixels that it is turned
            prompt = self._prompt(asked, looked.messages, grids)
        return Prepared(
            request=asked,
            images=tuple(one.picture for one in seen),
            pixels=tuple(one.pixels_at(of.view.time) for one, of in zip(seen, glances, strict=True)),
            names=tuple(one.name for one in glances),
            fresh=self._fresh,
            prompt=prompt,
            asked=shorten(prompt, manifest.image_token, asked.keep_image_tokens),
            limit=min(asked.max_tokens or sys.maxsize, self._context(asked) - len(prompt)),
            files=tuple(one.file for one in seen),
            sources=tuple(one.source for one in glances),
            video=looked.shown,
            reduced=sum(one.header.reduced for one in seen),
            compiled=compiled,
        )

    def _compiled(self, asked: Request) -> CompiledConstraint | None:
        """What the answer keeps to. Raises InputError where it does not compile."""
        if (constraint := asked.sampling.constraint) is None:
            return None
        from cutline.models.law.grammars import Grammars  # its library is loaded where somebody asks for it

        with self._turn:
            self._grammars = self._grammars or Grammars(lambda: self._prompts.vocabulary, self._manifest)
        return self._grammars.compiled(constraint, tenant=asked.tenant)

    def _prompt(self, asked: Request, messages: Sequence[Message], grids: Sequence[Grid]) -> tuple[int, ...]:
        """The tokens of a question with these `messages`, whose images become `grids`.

        Raises PromptError where they leave no room.
        """
        tools = () if asked.tools is None else asked.tools.tools
        prompt, context = self._prompts.build(messages, grids, tools).ids, self._context(asked)
        if len(prompt) >= context:
            raise PromptError(
                f"the prompt takes {len(prompt)} tokens, the target holds {context}; ask something shorter"
            )
        return prompt

    def _context(self, asked: Request) -> int:
        """Tokens that every model holds which may be asked."""
        context = self._manifest.decoder.context
        if (asked.cut != "image" or self._planned) and self._target is not None:
            return min(context, self._target.manifest.decoder.context)
        return context

    def _served(self, asked: Request) -> Request:
        """A question as it is served: what has to call a tool is constrained to, and without what changes nothing.

        That is a detail, where every image has the tokens of its shape.
        """
        if asked.tools is not None and (constraint := asked.tools.constraint) is not None:
            self._prompts.check_tools()
            sampling = msgspec.structs.replace(asked.sampling, constraint=constraint)
            asked = msgspec.structs.replace(asked, sampling=sampling)
        if self._manifest.family.scales or "low" not in details_of(asked.messages):
            return asked
        return msgspec.structs.replace(asked, messages=tuple(map(_undetailed, asked.messages)))

    def _budgets(self, asked: Request) -> tuple[int | None, ...]:
        """How many tokens each image may have at most, where it is asked to have few."""
        if asked.image_tokens is not None:
            return (asked.image_tokens,) * len(asked.images)
        return tuple(LOW_TOKENS if detail == "low" else None for detail in details_of(asked.messages))

    def _size(self, size: Size, budget: int | None) -> Size:
        """The size at which an image is looked at. Raises InputError where it cannot have so few tokens."""
        if budget is None:
            return size
        found = self._manifest.family.within(size, budget)
        if found is None:
            raise InputError(
                f"an image of {size[0]}x{size[1]} pixels cannot have {budget} image tokens or fewer with "
                f"{self._manifest.name}; give more image_tokens, or none"
            )
        return found

    def _grid(self, glance: Glance) -> Grid:
        """The grid of what is looked at, as its header says. Raises InputError where it has too many tokens."""
        family, strip = self._manifest.family, glance.view.strip
        if strip is None:
            return family.grid(self._size(glance.headers[0].size, glance.budget))
        grid = family.piece_grid(strip)
        assert grid is not None
        return grid

    def _see(self, glance: Glance) -> SeenImage:
        if (found := self._pictures.get(glance.name)) is not None:
            return found
        with DECODING.hold(max(header.memory for header in glance.headers)):
            if glance.view.strip is None:
                seen = self._decode(glance.files[0], glance.headers[0], glance.budget)
            else:
                seen = self._decode_piece(glance)
        self._pictures.put(glance.name, seen, seen.size)
        return seen

    def _decode_piece(self, glance: Glance) -> SeenImage:
        """Decode the frames of a piece of a video, one by one. Raises ImageError."""
        family, mode = self._manifest.family, self._manifest.family.video
        assert mode is not None
        fitted: dict[int, Image.Image] = {}
        for index, file in zip(glance.view.images, glance.files, strict=True):
            if index not in fitted:
                fitted[index] = mode.fit(decode_image(file), glance.view.frames)
        made = strip([fitted[index] for index in glance.view.images])
        if made.size != glance.view.strip:  # a PNG had said behind its pixels that it is turned
            raise ImageError("a frame says two things about how it is turned; save it again")
        return SeenImage(glance.headers[0], made, family.piece_pixels(made))

    def _decode(self, file: bytes, header: Header, budget: int | None) -> SeenImage:
        """Decode an image, and keep what is small. Raises ImageError."""
        family, picture = self._manifest.family, decode_image(file)
        if (size := self._size(picture.size, budget)) != picture.size:
            picture, header = family.resize(picture, size), replace(header, reduced=True)
        settled = family.settle(picture)
        pixels = family.preprocess(settled)
        if settled is not picture:
            return SeenImage(header, settled, pixels)
        if header.travels:
            packed = file
        elif math.prod(picture.size) <= MAX_PACKED:
            packed = lossless(picture)
        else:
            raise ImageError("an image of this shape is too large in this format; save it as JPEG, PNG or WebP")
        preview = picture.copy()
        preview.thumbnail((PREVIEW, PREVIEW), Image.Resampling.BOX)
        return SeenImage(header, preview, pixels, packed)


def _undetailed(message: Message) -> Message:
    parts = (ImagePart() if isinstance(part, ImagePart) else part for part in message.parts)
    return Message(message.role, tuple(parts), message.calls)
