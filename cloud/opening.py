"""What opens a session, and every boundary row that comes for it: checked here, before the engine hears of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from cutline.cloud.inbox import Inbox
from cutline.cloud.session import BoundaryRows, Request
from cutline.errors import InputError, ModelMismatch
from cutline.models.bundle import Manifest
from cutline.models.families import Grid
from cutline.models.images import decode_image
from cutline.models.layerline import END
from cutline.models.sampling import Sampling
from cutline.models.wire import Wire
from cutline.protos.messages import Boundary, Draft, ImageChunk, Open

MAX_IMAGES = 16
MAX_IMAGE_BYTES = 32 << 20  # of all a session's images together
MAX_BOUNDARY_BYTES = 128 << 20  # as float32, whatever the format on the wire

Upload = list[bytes] | BoundaryRows  # image files, or the boundary


class Reception:
    """Takes sessions for the layers `[start, end)` of the model in `manifest`.

    `context` is how many tokens a session may hold, `wires` are the formats in which boundary rows may come.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        context: int,
        start: str = "image",
        end: str = END,
        wires: Collection[Wire] = tuple(Wire),
    ) -> None:
        line = manifest.line
        self._manifest = manifest
        self._context = context
        self._cuts = line.layers[line.place(start) : line.place(end)]
        self._wires = wires

    def check(self, opening: Open) -> None:
        """Raises InputError, or ModelMismatch, for an opening that cannot be served whatever follows it."""
        manifest = self._manifest
        if opening.model != manifest.identity:
            raise ModelMismatch(
                f"this worker serves {manifest.name} ({manifest.identity[:12]}), "
                f"the agent was made for {opening.model[:12]!r}; connect it to a worker of that model"
            )
        if opening.cut not in self._cuts:
            raise InputError(f"this worker cannot begin at {opening.cut[:40]!r}; cuts: {', '.join(self._cuts)}")
        if max(opening.images, len(opening.grids)) > MAX_IMAGES:
            raise InputError(f"{opening.images} images are too many; send {MAX_IMAGES} at most")
        if opening.images > self._image_tokens(opening):
            raise InputError(f"{opening.images} images need more image tokens than the prompt holds")
        if not all(manifest.family.takes(grid) for grid in opening.grids):
            raise InputError("a grid is none that an image of this model becomes")
        if len(opening.tokens) >= self._context:
            raise InputError(f"{len(opening.tokens)} tokens leave no room in a context of {self._context}")
        if len(opening.tokens) >= opening.prompt_length + opening.max_tokens:
            raise InputError("max_tokens leaves nothing to answer")
        vocabulary = manifest.decoder.vocabulary
        if max((*opening.tokens, *opening.draft)) >= vocabulary:
            raise InputError(f"a token is outside the vocabulary of {vocabulary}")

    async def upload(self, opening: Open, inbox: Inbox) -> Upload:
        """The images or the boundary that follow a checked opening. Raises InputError."""
        if opening.cut == "image":
            return await _images(inbox, opening.images)
        count, width = self._boundary_shape(opening)
        if count * width * 4 > MAX_BOUNDARY_BYTES:
            raise InputError(f"a boundary of {count} rows is over {MAX_BOUNDARY_BYTES >> 20} MiB as float32; send less")
        parts, come = [np.empty((0, width), np.float32)], 0
        while come < count:
            message = await inbox.next()
            if not isinstance(message, Boundary):
                raise InputError(f"{count} boundary rows were to come, {come} came")
            parts.append(self._rows(message.rows, message.wire, width))
            come += len(message.rows)
            if come > count or message.last != (come == count):
                raise InputError(f"{count} boundary rows belong to this opening, not the number sent")
        return np.concatenate(parts)

    def request(self, opening: Open, upload: Upload) -> Request:
        """The request for the engine. Raises InputError where images and prompt do not fit each other."""
        boundary: NDArray[np.float32] | None
        family, grids = self._manifest.family, opening.grids
        if isinstance(upload, np.ndarray):
            boundary = upload if len(upload) else None
        else:
            boundary, grids = self._pixels(upload, self._image_tokens(opening))
        return Request(
            tokens=opening.tokens,
            prompt_length=opening.prompt_length,
            max_tokens=min(opening.max_tokens, self._context - opening.prompt_length),
            sampling=Sampling(
                temperature=opening.temperature, top_k=opening.top_k, top_p=opening.top_p, seed=opening.seed
            ),
            effort=opening.effort,
            draft=opening.draft,
            cut=opening.cut,
            deep=self._is_deep(opening),
            boundary=boundary,
            grids=grids,
            positions=family.positions(
                np.array(opening.tokens[: opening.prompt_length]) == self._manifest.image_token, grids
            ),
        )

    def _pixels(self, files: Sequence[bytes], expected: int) -> tuple[NDArray[np.float32] | None, tuple[Grid, ...]]:
        """The pixels of image files that have `expected` tokens in all, and what they became. Raises InputError."""
        family, pixels, grids, given = self._manifest.family, [], [], 0
        for file in files:  # a small file may be a large picture, so no two pictures are held at once
            picture = decode_image(file)
            grids.append(family.grid(picture.size))
            given += family.tokens(grids[-1])
            if given > expected:
                break
            pixels.append(family.preprocess(picture).values)
        if given != expected:
            raise InputError(f"the prompt holds {expected} image tokens, but the images sent give {given}")
        return np.concatenate(pixels) if pixels else None, tuple(grids)

    def draft(self, opening: Open, draft: Draft) -> Draft:
        """A draft for a session that was opened with `opening`, cut at the context's end. Raises InputError."""
        if max(draft.tokens, default=0) >= self._manifest.decoder.vocabulary:
            raise InputError("a drafted token is outside the vocabulary")
        room = max(0, self._context - draft.position)  # what lies past the context never stands
        if not self._is_deep(opening):
            if draft.rows is not None:
                raise InputError(f"a draft has no boundary rows at {opening.cut}, where tokens travel by themselves")
            return Draft(draft.position, draft.tokens[:room])
        if draft.rows is None:
            raise InputError(f"a draft needs a boundary row a token at {opening.cut}")
        rows = self._rows(draft.rows, draft.wire, self._manifest.decoder.width)
        return Draft(draft.position, draft.tokens[:room], rows[:room], draft.wire)

    def _is_deep(self, opening: Open) -> bool:
        return opening.cut in self._manifest.line.deep_cuts

    def _image_tokens(self, opening: Open) -> int:
        """How many image tokens the prompt holds; one in an answer is a token like any other."""
        return opening.tokens[: opening.prompt_length].count(self._manifest.image_token)

    def _boundary_shape(self, opening: Open) -> tuple[int, int]:
        """Rows and width of the boundary at a cut after `image`. Raises InputError."""
        manifest, tokens = self._manifest, self._image_tokens(opening)
        if self._is_deep(opening):
            return len(opening.tokens) + len(opening.draft), manifest.decoder.width
        if opening.cut == "decoder.0":
            return tokens, manifest.decoder.width  # fewer than the grids say where an agent merged some
        if (given := sum(map(manifest.family.tokens, opening.grids))) != tokens:
            raise InputError(f"the prompt holds {tokens} image tokens, but images of the grids sent have {given}")
        return sum(map(manifest.family.patches, opening.grids)), manifest.vision.width

    def _rows(self, rows: BoundaryRows, wire: Wire, width: int) -> BoundaryRows:
        if wire not in self._wires:
            raise InputError(f"this worker takes no boundary rows as {wire}; send {', '.join(self._wires)}")
        if rows.shape[1] != width:
            raise InputError(f"boundary rows are {rows.shape[1]} wide, this model's are {width}")
        return rows


async def _images(inbox: Inbox, count: int) -> list[bytes]:
    files: list[bytes] = []
    parts, size = bytearray(), 0
    while len(files) < count:
        message = await inbox.next()
        if not isinstance(message, ImageChunk):
            raise InputError(f"{count} images were announced, {len(files)} came")
        size += len(message.data)
        if size > MAX_IMAGE_BYTES:
            raise InputError(f"the images are over {MAX_IMAGE_BYTES >> 20} MiB; send smaller ones")
        parts += message.data
        if message.last:
            files.append(bytes(parts))
            parts.clear()
    return files
