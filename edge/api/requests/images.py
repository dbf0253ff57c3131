"""A request's images: what `data:` URLs hold, and what may be fetched."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from cutline.core.conversation import ImagePart, Message
from cutline.core.request import MAX_IMAGE_BYTES, MAX_IMAGES
from cutline.errors import ImageError, InputError

if TYPE_CHECKING:  # an agent that fetches nothing loads nothing of it
    from cutline.edge.api.requests.image_fetcher import Fetcher

_NOT_BASE64 = "an image that was sent is not base64"


def only_users(messages: Sequence[Message]) -> None:
    """That images are in the messages of the user alone. Raises InputError."""
    for message in messages:
        if message.role != "user" and any(isinstance(part, ImagePart) for part in message.parts):
            raise InputError(f"a message of the {message.role} has an image; only the user's may")


async def pictures(
    urls: Sequence[str],
    received: Mapping[str, bytes | None],
    fetcher: Fetcher | None,
    *,
    offline: Callable[[], bool],
) -> list[bytes]:
    """The bytes behind each of `urls`: among those `received`, where None was not base64, or fetched, if not `offline`.

    Raises InputError, also where what is fetched would be more than a question may have.
    """
    if len(urls) > MAX_IMAGES:  # counted before any is decoded or fetched
        raise InputError(f"{len(urls)} images are too many; give {MAX_IMAGES} at most")
    found, left = list[bytes](), MAX_IMAGE_BYTES
    for url in urls:
        if url in received:
            if (picture := received[url]) is None:
                raise ImageError(_NOT_BASE64)
            found.append(picture)
        elif fetcher is None or not url[:8].lower().startswith(("http://", "https://")):
            found.append(data_of(url))
        elif offline():
            raise ImageError("this agent is offline, and fetches no image; send it as a `data:` URL")
        else:
            found.append(await fetcher.fetch(url, room=left))
        left -= len(found[-1])
    return found


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
        raise ImageError(_NOT_BASE64) from None
