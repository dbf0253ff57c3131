"""A request's images and videos: what `data:` URLs hold, what may be fetched, and the frames that are looked at."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from cutline.core.conversation import Message, pictures_of
from cutline.core.request import MAX_IMAGE_BYTES, MAX_IMAGES
from cutline.edge.video.sampled import SampledVideo
from cutline.errors import ImageError, InputError
from cutline.models.families import Family

if TYPE_CHECKING:  # an agent that fetches nothing loads nothing of it
    from cutline.edge.api.requests.image_fetcher import Fetcher

_NOT_BASE64 = "an image that was sent is not base64"


def only_users(messages: Sequence[Message]) -> None:
    """That images are in the messages of the user alone. Raises InputError."""
    for message in messages:
        if message.role != "user" and pictures_of(message.parts):
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


async def filmed(
    media: Sequence[bytes], videos: Collection[int], family: Family, places: asyncio.Semaphore
) -> Sequence[bytes | SampledVideo]:
    """The `media` of a request, those of them that are `videos` as frames at which models of a `family` look.

    Together with its images there are no more than a question may have. Each takes one of the `places`. Raises
    InputError.
    """
    if not videos:
        return media
    room = (MAX_IMAGES - (len(media) - len(videos))) // len(videos)
    if room < 1:
        raise InputError(f"{len(media)} images and videos leave no room for frames; give {MAX_IMAGES} of all at most")
    from cutline.edge.video.reader import read_video

    found = list[bytes | SampledVideo](media)
    for index in sorted(videos):
        async with places:
            found[index] = await read_video(media[index], family, most=room)
    return found


def stills_of(media: Sequence[bytes | SampledVideo]) -> tuple[bytes, ...]:
    """All images, the frames of videos among them, in order."""
    return tuple(one for of in media for one in ((of,) if isinstance(of, bytes) else of.frames))


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
