"""A request's images: what `data:` URLs hold, and what may be fetched."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cutline.errors import ImageError, InputError
from cutline.protos.messages import MAX_IMAGES

if TYPE_CHECKING:  # an agent that fetches nothing loads nothing of it
    from cutline.edge.fetching import Fetcher


async def pictures(urls: Sequence[str], fetcher: Fetcher | None, *, offline: bool = False) -> list[bytes]:
    """The bytes behind each of `urls`, of which none is fetched `offline`. Raises InputError."""
    if len(urls) > MAX_IMAGES:  # counted before any is decoded or fetched
        raise InputError(f"{len(urls)} images are too many; give {MAX_IMAGES} at most")
    return [await _picture(url, fetcher, offline=offline) for url in urls]


async def _picture(url: str, fetcher: Fetcher | None, *, offline: bool) -> bytes:
    if fetcher is None or not url[:8].lower().startswith(("http://", "https://")):
        return data_of(url)
    if offline:
        raise ImageError("this agent is offline, and fetches no image; send it as a `data:` URL")
    return await fetcher.fetch(url)


def data_of(url: str) -> bytes:
    """The bytes in a base64 `data:` URL. Raises ImageError."""
    head, comma, body = url.partition(",")
    if not (head[:5].lower() == "data:" and head.endswith(";base64") and comma):
        raise ImageError(
            "images are taken as base64 `data:` URLs only, unless the agent was started with --allow-url HOST"
        )
    try:
        return base64.b64decode(body, validate=True)
    except ValueError:
        raise ImageError("the image's `data:` URL is not base64") from None
