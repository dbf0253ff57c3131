"""What of a question's images goes to a worker, and what of them each worker keeps already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cutline.core.lru_cache import LruCache
from cutline.core.wire import Wire
from cutline.edge.generation.generation import Execution, Prepared
from cutline.edge.inference.kv_cache import Rows
from cutline.edge.inference.target_prefix import Crossing
from cutline.models.families import Family
from cutline.models.images import lossless
from cutline.protos.digests import as_received, image_digest, piece_digest, rows_digest

REMEMBERED = 1000  # images of all workers together, some 300 bytes each


@dataclass(frozen=True, slots=True)
class UploadKey:
    """How an image crosses to the worker at an address: its file's name, cut, format (none of a file) and noise."""

    worker: str
    name: bytes
    cut: str
    wire: Wire | None
    noise: float


@dataclass(frozen=True, slots=True, eq=False)
class Upload:
    """What of a question's images goes to a worker.

    `digests` are those of all its images, or there are none where images have none: merged ones, those of a fresh
    question, and all at a cut inside the decoder. The first `known` of them stay here. Of the others there are the
    `files` at the cut `image`, the `rows` at one up to the decoder.
    """

    digests: tuple[bytes, ...] = ()
    known: int = 0
    files: tuple[bytes, ...] = ()
    rows: tuple[Rows, ...] = ()
    ways: tuple[UploadKey, ...] = ()  # one a digest


class Uploads:
    """Remembers which images each worker said that it keeps. For any threads."""

    def __init__(self) -> None:
        self._digests: LruCache[UploadKey, bytes] = LruCache(REMEMBERED)

    def pack(
        self, worker: str, prepared: Prepared, execution: Execution, crossing: Crossing | None, family: Family
    ) -> Upload:
        """What goes to the worker at this address: files, or where there is a `crossing` what that computes.

        Raises InputError where the format cannot hold it.
        """
        cut, wire, everything = execution.cut, execution.wire, range(len(prepared.images))
        if crossing is not None and crossing.deep:
            return Upload()
        if crossing is not None and prepared.request.keep_image_tokens < 1.0:
            return Upload(rows=tuple(map(crossing.image, everything)))
        ways = self._ways(worker, prepared, cut, wire)
        known = self._known(ways)
        if crossing is None:
            files = [_packed(prepared, index, family) for index in everything[len(known) :]]
            named = enumerate(files, len(known))
            fresh = (piece_digest(file) if index in prepared.pieces else image_digest(file) for index, file in named)
            digests = (*known, *fresh) if prepared.kept is not None else ()
            return Upload(digests, len(known), files=tuple(files), ways=ways)
        rows = [crossing.image(index) for index in everything[len(known) :]]
        theirs = (as_received(one, wire) for one in rows)
        grids = (one.grid for one in prepared.pixels[len(known) :])
        fresh = (rows_digest(cut, wire, *pair) for pair in zip(grids, theirs, strict=True))
        digests = (*known, *fresh) if prepared.kept is not None else ()
        return Upload(digests, len(known), rows=tuple(rows), ways=ways)

    def known(self, worker: str, prepared: Prepared, cut: str, wire: Wire) -> int:
        """How many of a question's images, from the first, would not have to cross to a worker."""
        return len(self._known(self._ways(worker, prepared, cut, wire)))

    def keep(self, upload: Upload) -> None:
        """Remember that the worker keeps all images of an upload."""
        for way, digest in zip(upload.ways, upload.digests, strict=False):  # there are no ways for what is not kept
            self._digests.put(way, digest, 1)

    def forget(self, worker: str) -> None:
        """Whatever the worker at this address kept, it may not have any more."""
        self._digests.drop(lambda way: way.worker == worker)

    def _ways(self, worker: str, prepared: Prepared, cut: str, wire: Wire) -> tuple[UploadKey, ...]:
        format_ = None if cut == "image" else wire
        noise = prepared.request.noise
        return tuple(UploadKey(worker, name, cut, format_, noise) for name in prepared.kept or ())

    def _known(self, ways: Sequence[UploadKey]) -> list[bytes]:
        found = []
        for way in ways:
            if (digest := self._digests.get(way)) is None:
                break
            found.append(digest)
        return found


def _packed(prepared: Prepared, index: int, family: Family) -> bytes:
    """The file in which an image travels."""
    if prepared.files and (packed := prepared.files[index]) is not None:
        return packed
    source = (prepared.sources or prepared.request.images)[index]
    picture = prepared.images[index]
    return lossless(picture) if source is None else family.shrink(source, picture)
