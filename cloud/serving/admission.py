"""What opens a session, and every boundary row that comes for it: checked here, before the engine hears of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cutline.cloud.engine.image_cache import ImageCache, Kept, Picture
from cutline.cloud.engine.sessions.session_request import SessionRequest
from cutline.cloud.engine.sessions.session_rows import BoundaryRows
from cutline.cloud.serving.inbox import Inbox, images_of
from cutline.core.request import MAX_IMAGES
from cutline.core.wire import Wire
from cutline.errors import InputError, ModelMismatch, WorkerForgot, WorkerUnavailable
from cutline.models.bundle import Manifest
from cutline.models.decode_budget import DECODING
from cutline.models.families import Grid
from cutline.models.images import TRAVELLING, Pixels, decode_image, read_header
from cutline.models.law.grammars import CompiledConstraint, Grammars
from cutline.models.layerline import END
from cutline.protos.digests import image_digest, piece_digest, rows_digest
from cutline.protos.messages import SIDES, Boundary, Draft, Open

MAX_TIME = 1_000_000  # positions between a video's pieces
MAX_BOUNDARY_BYTES = 128 << 20  # as float32, whatever the format on the wire


@dataclass(frozen=True, slots=True, eq=False)
class ReceivedUpload:
    """What followed an opening of `tenant`: image `files`, or the boundary's `rows` and `sides`, which came as `wires`.

    They are those of the images that are not `kept` from before.
    """

    tenant: str
    kept: tuple[Kept, ...]
    files: tuple[bytes, ...] = ()
    rows: BoundaryRows | None = None
    sides: BoundaryRows | None = None
    wires: frozenset[Wire] = frozenset()


@dataclass(frozen=True, slots=True, eq=False)
class _Named:
    """An image under its key, and what is kept of it."""

    key: bytes
    grid: Grid
    kept: Kept | None


_Prepared = tuple[NDArray[np.float32] | None, tuple[_Named, ...], tuple[Grid, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedSpan:
    """What a worker serves of a model: the `layers` (start, end), in sessions of `context` tokens at most.

    Boundary rows may come in the formats `wires`.
    """

    context: int
    layers: tuple[str, str] = ("image", END)
    wires: Collection[Wire] = tuple(Wire)


class Reception:
    """Takes sessions for a `span` of the model in `manifest`; on `image_cache` are images from before.

    `grammars` compile constraints, where tokens are chosen here.
    """

    def __init__(
        self,
        manifest: Manifest,
        span: ServedSpan,
        *,
        image_cache: ImageCache | None = None,
        grammars: Grammars | None = None,
    ) -> None:
        line, (start, end) = manifest.line, span.layers
        self._manifest = manifest
        self._context = span.context
        theirs = line.layers[line.place(start) : line.place(end)]
        self._cuts = tuple(cut for cut in line.cuts if cut in theirs)
        self._wires = span.wires
        self._image_cache = image_cache or ImageCache(0)
        self._grammars = grammars

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
        images = opening.known + opening.images
        if (most := max(images, len(opening.grids), len(opening.digests))) > MAX_IMAGES:
            raise InputError(f"{most} images are too many; send {MAX_IMAGES} at most")
        if (room := manifest.family.most_images) is not None and max(images, len(opening.grids)) > room:
            raise InputError(f"{manifest.name} takes {room} images at most in a prompt")
        if images > self._image_tokens(opening):
            raise InputError(f"{images} images need more image tokens than the prompt holds")
        self._check_digests(opening)
        if opening.pieces and (opening.cut != "image" or not set(opening.pieces) <= set(range(images))):
            raise InputError(f"pieces of videos are among the {images} images of an opening at the cut image alone")
        seen = images if opening.cut == "image" else len(opening.grids)
        if len(opening.times) not in (0, seen) or max(opening.times, default=0) > MAX_TIME:
            raise InputError(f"each image has one time of {MAX_TIME} at most, or none has any")
        if not all(manifest.family.takes(grid) for grid in opening.grids):
            raise InputError("a grid is none that an image of this model becomes")
        if len(opening.tokens) >= self._context:
            raise InputError(f"{len(opening.tokens)} tokens leave no room in a context of {self._context}")
        if len(opening.tokens) >= opening.prompt_length + opening.max_tokens:
            raise InputError("max_tokens leaves nothing to answer")
        vocabulary, images_at = manifest.decoder.vocabulary, {manifest.image_token}
        asked = set(opening.tokens[: opening.prompt_length]) - images_at  # which may lie behind what the head chooses
        if max((*asked, *opening.tokens[opening.prompt_length :], *opening.draft), default=0) >= vocabulary:
            raise InputError(f"a token is outside the vocabulary of {vocabulary}")
        opening.sampling.check_tokens(vocabulary)

    def _check_digests(self, opening: Open) -> None:
        digests, grids = len(opening.digests), len(opening.grids)
        if digests == 0:
            return
        if self._is_deep(opening):
            raise InputError(f"images have no digests at {opening.cut}, where no rows are theirs alone")
        if opening.cut == "image" and (digests != opening.known + opening.images or grids not in (0, digests)):
            raise InputError(
                f"{opening.known} known images and {opening.images} to come have {digests} digests and {grids} grids"
            )
        if opening.cut != "image" and digests != grids:
            raise InputError(f"{digests} digests came for images of {grids} grids")

    async def upload(self, opening: Open, inbox: Inbox, tenant: str = "") -> ReceivedUpload:
        """The images or the boundary that follow a checked opening of `tenant`.

        Raises InputError, and WorkerForgot before any of it comes, if images that need not follow are not here.
        """
        kept = self._recall(opening, tenant)
        if opening.cut == "image":
            return ReceivedUpload(tenant, kept, files=await images_of(inbox, opening.images))
        (count, width), beside = self._boundary_shape(opening), self._side_rows(opening)
        most = MAX_BOUNDARY_BYTES * self._manifest.family.streams(self._manifest.line, opening.cut)
        if max(count, beside) * width * 4 > most:
            raise InputError(f"a boundary of {max(count, beside)} rows is over {most >> 20} MiB as float32; send less")
        wires = set[Wire]()
        rows = await self._tensor(inbox, "", (count, width), wires, more=beside > 0)
        sides = await self._tensor(inbox, SIDES, (beside, width), wires, more=False) if beside else None
        return ReceivedUpload(tenant, kept, rows=rows, sides=sides, wires=frozenset(wires))

    async def _tensor(
        self, inbox: Inbox, name: str, shape: tuple[int, int], wires: set[Wire], *, more: bool
    ) -> BoundaryRows:
        """A tensor of a boundary in pieces; their formats are added to `wires`. Raises InputError."""
        (count, width), come = shape, 0
        parts = [np.empty((0, width), np.float32)]
        while come < count:
            message = await inbox.next()
            if not isinstance(message, Boundary) or message.tensor != name:
                raise InputError(f"{count} boundary rows {f'of {name} ' if name else ''}were to come, {come} came")
            parts.append(self._rows(message.rows, message.wire, width))
            wires.add(message.wire)
            come += len(message.rows)
            if come > count or message.last != (come == count and not more):
                raise InputError(f"{count} boundary rows belong to this opening, not the number sent")
        return np.concatenate(parts)

    def _recall(self, opening: Open, tenant: str) -> tuple[Kept, ...]:
        """The images that an opening takes to be known here. Raises WorkerForgot, and InputError for another grid."""
        kept = []
        for digest in opening.digests[: opening.known]:
            if (found := self._image_cache.find(self._image_cache.key(tenant, digest))) is None:
                raise WorkerForgot("this worker does not have the images any more; send them all")
            kept.append(found)
        for found, grid in zip(kept, opening.grids, strict=False):
            if found.grid != grid:
                raise InputError("an image that is known here has another grid than the opening says")
        return tuple(kept)

    def request(
        self, opening: Open, upload: ReceivedUpload, *, wanted: Callable[[], bool] = lambda: True
    ) -> SessionRequest:
        """The request for the engine. Raises InputError where images and prompt do not fit each other.

        Raises WorkerUnavailable, before another image is decoded, once it is not `wanted` any more.
        """
        image_tokens = np.array(opening.tokens[: opening.prompt_length]) == self._manifest.image_token
        compiled = self._compiled(opening, upload.tenant)
        boundary, images, grids = self._images(opening, upload, wanted)
        if boundary is not None and opening.cut != "image" and not self._is_deep(opening):
            streams = self._manifest.family.streams(self._manifest.line, opening.cut)  # which came as rows of their own
            boundary = boundary.reshape(len(boundary) // streams, -1)
        return SessionRequest(
            tokens=opening.tokens,
            prompt_length=opening.prompt_length,
            max_tokens=min(opening.max_tokens, self._context - opening.prompt_length),
            sampling=opening.sampling,
            effort=opening.effort,
            draft=opening.draft,
            cut=opening.cut,
            deep=self._is_deep(opening),
            boundary=boundary,
            sides=upload.sides,
            grids=grids,
            times=opening.times,
            positions=self._manifest.family.positions(image_tokens, grids, opening.times),
            pictures=() if self._is_deep(opening) else self._pictures(np.flatnonzero(image_tokens), images),
            tenant=upload.tenant,
            likelihoods=opening.likelihoods,
            alternatives=opening.alternatives,
            request_id=opening.request_id,
            priority=opening.priority,
            penalties=self._manifest.penalties,
            compiled=compiled,
        )

    def _compiled(self, opening: Open, tenant: str) -> CompiledConstraint | None:
        """What the answer keeps to, where tokens are chosen here. Raises InputError, also where it does not so far."""
        constraint = opening.sampling.constraint
        if constraint is None or self._grammars is None:
            return None
        compiled = self._grammars.compiled(constraint, tenant=tenant)
        compiled.matcher(opening.tokens[opening.prompt_length :])
        return compiled

    def _images(self, opening: Open, upload: ReceivedUpload, wanted: Callable[[], bool]) -> _Prepared:
        """What is to be encoded, the images one by one if they are named, and their grids. Raises InputError."""
        named = [
            _Named(self._image_cache.key(upload.tenant, digest), kept.grid, kept)
            for digest, kept in zip(opening.digests, upload.kept, strict=False)
        ]
        if upload.rows is None:
            return self._from_files(opening, upload, named, wanted)
        if not opening.digests:
            return upload.rows if len(upload.rows) else None, (), opening.grids
        return self._from_rows(opening, upload, named)

    def _from_files(
        self, opening: Open, upload: ReceivedUpload, named: list[_Named], wanted: Callable[[], bool]
    ) -> _Prepared:
        family, expected = self._manifest.family, self._image_tokens(opening)
        given = sum(family.tokens(one.grid) for one in named)
        digests = opening.digests[opening.known :] or (None,) * len(upload.files)
        coming = list[tuple[bytes, bytes | None, Kept | None]]()
        # A small file may be a large picture: headers say what all of them become, before any is decoded.
        pieces = {index - opening.known for index in opening.pieces}
        for index, (file, digest) in enumerate(zip(upload.files, digests, strict=True)):
            found = piece_digest(file) if index in pieces else image_digest(file)
            key = None if digest is None else self._named_rightly(digest, found, upload.tenant)
            kept = None if key is None else self._image_cache.find(key)
            coming.append((file, key, kept))
            given += family.tokens(self._grid(file, piece=index in pieces) if kept is None else kept.grid)
            if given > expected:
                break
        self._check_count(expected, given)
        grids, pixels = [one.grid for one in named], []
        for index, (file, key, kept) in enumerate(coming):
            if not wanted():
                raise WorkerUnavailable("nobody waits for this session any more")
            if kept is None:
                made = self._pixels(file, piece=index in pieces)
                pixels.append(made.values)
                grids.append(made.grid)
            else:
                grids.append(kept.grid)
            if key is not None:
                named.append(_Named(key, grids[-1], kept))
        self._check_count(expected, sum(map(family.tokens, grids)))
        return np.concatenate(pixels) if pixels else None, tuple(named), tuple(grids)

    def _grid(self, file: bytes, *, piece: bool) -> Grid:
        """The grid of an image file, or of the strip of a piece of a video, as its header says. Raises InputError."""
        family, size = self._manifest.family, read_header(file, TRAVELLING).size
        grid = family.piece_grid(size) if piece else family.grid(size)
        if grid is None:
            raise InputError(f"a strip of {size[0]}x{size[1]} pixels is no piece of a video of this model")
        return grid

    def _pixels(self, file: bytes, *, piece: bool) -> Pixels:
        """The pixels of an image file; of the picture nothing is held any more."""
        family = self._manifest.family
        with DECODING.hold(read_header(file, TRAVELLING).memory):
            picture = decode_image(file, TRAVELLING)
            if piece and family.piece_grid(picture.size) is None:  # a PNG had said behind its pixels that it is turned
                raise InputError("a strip is turned, and then no piece of a video of this model")
            return family.piece_pixels(picture) if piece else family.preprocess(picture)

    @staticmethod
    def _check_count(expected: int, given: int) -> None:
        if given != expected:
            raise InputError(f"the prompt holds {expected} image tokens, but the images sent give {given}")

    def _from_rows(self, opening: Open, upload: ReceivedUpload, named: list[_Named]) -> _Prepared:
        assert upload.rows is not None
        at, parts = 0, []
        if len(upload.wires) > 1:
            raise InputError("an image that has a digest crosses in one format, not in several")
        for digest, grid in tuple(zip(opening.digests, opening.grids, strict=True))[opening.known :]:
            count = self._image_rows(opening.cut, grid)
            rows = upload.rows[at : at + count]
            at += count
            (wire,) = upload.wires
            key = self._named_rightly(digest, rows_digest(opening.cut, wire, grid, rows), upload.tenant)
            named.append(_Named(key, grid, self._image_cache.find(key)))
            if named[-1].kept is None:
                parts.append(rows)
        return np.concatenate(parts) if parts else None, tuple(named), opening.grids

    def _named_rightly(self, said: bytes, found: bytes, tenant: str) -> bytes:
        """The key of an image. Raises InputError if it is not the one that its digest says."""
        if said != found:
            raise InputError("an image is not the one that its digest says")
        return self._image_cache.key(tenant, found)

    def _pictures(self, places: NDArray[np.int64], images: Sequence[_Named]) -> tuple[Picture, ...]:
        """The images whose tokens stand at `places`; without names one that stands for all."""
        if not images:
            return (Picture(None, (0, 0), int(places[0]), int(places[-1])),) if len(places) else ()
        pictures, at = [], 0
        for one in images:
            end = at + self._manifest.family.tokens(one.grid)
            pictures.append(Picture(one.key, one.grid, int(places[at]), int(places[end - 1]), one.kept))
            at = end
        return tuple(pictures)

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
        rows = self._rows(draft.rows, draft.wire, self._deep_width(opening.cut))
        return Draft(draft.position, draft.tokens[:room], rows[:room], draft.wire)

    def _is_deep(self, opening: Open) -> bool:
        return opening.cut in self._manifest.line.deep_cuts

    def _image_tokens(self, opening: Open) -> int:
        """How many image tokens the prompt holds; one in an answer is a token like any other."""
        return opening.tokens[: opening.prompt_length].count(self._manifest.image_token)

    def _boundary_shape(self, opening: Open) -> tuple[int, int]:
        """Rows and width of the boundary that follows at a cut after `image`. Raises InputError."""
        manifest, family, tokens = self._manifest, self._manifest.family, self._image_tokens(opening)
        if self._is_deep(opening):
            return len(opening.tokens) + len(opening.draft), self._deep_width(opening.cut)
        width = (manifest.decoder if opening.cut == "decoder.0" else manifest.vision).width
        if opening.cut == "decoder.0" and not opening.digests and not family.has_sides:
            # Fewer than the grids say where an agent merged some.
            return tokens * family.streams(manifest.line, opening.cut), width
        if (given := sum(map(family.tokens, opening.grids))) != tokens:
            raise InputError(f"the prompt holds {tokens} image tokens, but images of the grids sent have {given}")
        return sum(self._image_rows(opening.cut, grid) for grid in opening.grids[opening.known :]), width

    def _image_rows(self, cut: str, grid: Grid) -> int:
        """How many rows of an image with this `grid` come at a `cut` up to the decoder: one a stream."""
        family, line = self._manifest.family, self._manifest.line
        return family.crossing(line, cut, grid) * family.streams(line, cut)

    def _side_rows(self, opening: Open) -> int:
        """How many rows of pictures beside the prompt come with those of its tokens, for layers from the cut on."""
        family, line = self._manifest.family, self._manifest.line
        if not self._is_deep(opening) or not family.takes_sides(line.decoder_layer(opening.cut), line.decoder):
            return 0
        return sum(map(family.rows, opening.grids))

    def _deep_width(self, cut: str) -> int:
        """How wide the rows are at a `cut` inside the decoder, with all streams side by side."""
        return self._manifest.decoder.width * self._manifest.family.streams(self._manifest.line, cut)

    def _rows(self, rows: BoundaryRows, wire: Wire, width: int) -> BoundaryRows:
        if wire not in self._wires:
            raise InputError(f"this worker takes no boundary rows as {wire}; send {', '.join(self._wires)}")
        if rows.shape[1] != width:
            raise InputError(f"boundary rows are {rows.shape[1]} wide, this model's are {width}")
        return rows
