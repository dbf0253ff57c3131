"""What answers at the path of OpenAI's embeddings."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cutline.edge.api.embeddings.schema import EmbeddingList, EmbeddingRequest, listed, read_embedding
from cutline.edge.api.encoding.embedder import Embedded, Embedder
from cutline.edge.api.streams import AnswerStream


def embeddings(embedder: Embedder) -> list[Route]:
    """The path."""

    async def create(request: Request) -> Response | AnswerStream:
        return await embedder.respond(request, read_embedding, _told)

    return [Route("/v1/embeddings", create, methods=["POST"])]


def _told(asked: EmbeddingRequest, made: Embedded) -> EmbeddingList:
    return listed(asked, made.rows, model=made.model, read=made.read)
