"""Rows of the images of open sessions: encoded once for all pieces of a prompt, and kept for sessions to come."""

from __future__ import annotations

import torch

from cutline.cloud.image_cache import ImageCache, Kept
from cutline.cloud.session import Request, Session
from cutline.cloud.target import Target


class Pictures:
    """Image rows by session, as long as prompts are run; images are kept on `image_cache`. One thread may call."""

    def __init__(self, target: Target, image_cache: ImageCache) -> None:
        self._target = target
        self._image_cache = image_cache
        self._rows: dict[str, torch.Tensor] = {}

    def __len__(self) -> int:
        """Of how many sessions rows are held."""
        return len(self._rows)

    def of(self, session: Session) -> torch.Tensor | None:
        """The rows (n, width) of all the session's images, while its prompt is run; None if it has none."""
        if session.name not in self._rows and session.request.pictured:
            self._rows[session.name] = self._encoded(session.request)
        return self._rows.get(session.name)

    def forget(self, session: str) -> None:
        """Its prompt was run, or it ended."""
        self._rows.pop(session, None)

    def keeps(self, request: Request, *, encoded: bool) -> bool:
        """Whether all images of a request are kept for others to come; `encoded`: those that were not, are to be."""
        return (
            self._image_cache.keeps
            and self._target.decodes
            and all(one.key is not None and (encoded or one.kept is not None) for one in request.pictures)
        )

    def _encoded(self, request: Request) -> torch.Tensor:
        """Rows of the images of a request: those that are kept, and of the others what the tower makes; it is kept."""
        boundary, cut, pictures = request.boundary, request.cut, request.pictures
        if any(picture.key is None for picture in pictures) or not pictures or not self._target.decodes:
            assert boundary is not None
            return self._target.encode(boundary, cut, request.grids)
        new = [picture for picture in pictures if picture.kept is None]
        made = {}
        if new:
            assert boundary is not None
            for picture, of in zip(new, self._target.encode_each(boundary, cut, [of.grid for of in new]), strict=True):
                assert picture.key is not None
                made[picture] = Kept(picture.grid, of)
                self._image_cache.put(picture.key, made[picture])
        return torch.cat([(picture.kept or made[picture]).rows for picture in pictures])
