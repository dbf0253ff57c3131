"""The shape of OpenAI's embeddings: what is asked, and what is answered."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from cutline.edge.api.encoding.embedder import MAX_INPUTS
from cutline.edge.api.requests.fields import Rules, read_body
from cutline.edge.api.requests.schema import ChatImage, ChatText

RULES = Rules(ignored={"user": (str,)})


class EmbeddingRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request: a text, or a list of texts and images in any order.

    `dimensions` may only be those that the encoder has.
    """

    input: str | Annotated[list[str | ChatText | ChatImage], msgspec.Meta(min_length=1, max_length=MAX_INPUTS)]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None

    @property
    def parts(self) -> list[ChatText | ChatImage]:
        """Its texts and images in order."""
        given = [self.input] if isinstance(self.input, str) else self.input
        return [ChatText(one) if isinstance(one, str) else one for one in given]


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """The row of one input: numbers, or their bytes (float32, little-endian) in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What was read: the tokens of texts, and the patches of images."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of all inputs, in order."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


def read_embedding(body: bytes) -> EmbeddingRequest:
    """The request in a body of JSON. Raises Refused, which names every field that is unknown or not served."""
    return read_body(body, EmbeddingRequest, RULES)


def listed(asked: EmbeddingRequest, rows: Sequence[NDArray[np.float32]], *, model: str, read: int) -> EmbeddingList:
    """The response of `rows`, for which so many tokens and patches were `read`."""
    packed = asked.encoding_format == "base64"
    data = [
        Embedding(index=index, embedding=_packed(row) if packed else row.tolist()) for index, row in enumerate(rows)
    ]
    return EmbeddingList(data=data, model=model, usage=EmbeddingUsage(prompt_tokens=read, total_tokens=read))


def _packed(row: NDArray[np.float32]) -> str:
    return base64.b64encode(row.astype("<f4").tobytes()).decode()
