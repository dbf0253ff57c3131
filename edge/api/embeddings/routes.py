"""What answers at the path of the embeddings."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cutline.edge.api.embeddings.schema import EmbeddingRequest, check_dimensions, listed, read_embedding
from cutline.edge.api.errors import Fault, Refused
from cutline.edge.api.handler import ALIAS, Attempt, RequestHandler, as_json, tenant_of, unless_gone
from cutline.edge.api.metrics import EMBEDDINGS
from cutline.edge.api.requests.schema import ChatText
from cutline.edge.api.streams import AnswerStream
from cutline.edge.inference.encoder import Encoder
from cutline.errors import InputError


def embeddings(handler: RequestHandler, encoder: Encoder | None) -> list[Route]:
    """The path; of an agent without an encoder nothing is there."""
    return [Route("/v1/embeddings", _Embeddings(handler, encoder).create, methods=["POST"])]


class _Embeddings:
    def __init__(self, handler: RequestHandler, encoder: Encoder | None) -> None:
        self._handler = handler
        self._encoder = encoder
        self._turn = asyncio.Lock()  # an input has all threads to itself; those of several requests take turns

    async def create(self, request: Request) -> Response | AnswerStream:
        return await self._handler.attempt(request, partial(self._create, request))

    async def _create(self, request: Request, attempt: Attempt) -> Response:
        attempt.mode = EMBEDDINGS
        handler, encoder = self._handler, self._encoder
        if encoder is None:
            message = "this agent compares nothing; who runs it may start it with --encoder BUNDLE"
            raise Refused(404, Fault(message, InputError.__name__, code="model_not_found"), {"connection": "close"})
        body = await handler.body(request)
        with handler.place(tenant_of(request)) as place:
            began = time.perf_counter()
            asked = read_embedding(body.json)
            name = encoder.manifest.name
            if asked.model and asked.model not in (ALIAS, name):
                message = f"this agent's encoder is {name}; ask for that, or for {ALIAS}"
                raise Refused(404, Fault(message, InputError.__name__, "model", "model_not_found"))
            check_dimensions(asked.dimensions, encoder.manifest.dimensions)
            place.settle(needs_worker=False)
            images = await unless_gone(request.receive, handler.pictures(asked.urls, body))
            rows, read = await unless_gone(request.receive, self._rows(encoder, asked, iter(images)))
            handler.counts.embedded(
                texts=len(rows) - len(images), images=len(images), seconds=time.perf_counter() - began
            )
            return as_json(listed(asked, rows, model=name, read=read))

    async def _rows(
        self, encoder: Encoder, asked: EmbeddingRequest, images: Iterator[bytes]
    ) -> tuple[list[NDArray[np.float32]], int]:
        """The rows of all inputs, and how many tokens and patches were read: one after the other, until one is gone."""
        rows, read = [], 0
        for part in asked.parts:
            async with self._turn:
                if isinstance(part, ChatText):
                    (row,) = await asyncio.to_thread(encoder.embed_texts, [part.text], fresh=True)
                    read += encoder.count_tokens(part.text)
                else:
                    (row,) = await asyncio.to_thread(encoder.embed_images, [next(images)])
                    read += encoder.manifest.patches
            rows.append(row)
        return rows, read
