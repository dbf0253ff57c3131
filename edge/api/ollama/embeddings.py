"""The shape of Ollama's embeddings: what is asked, and what is answered."""

from __future__ import annotations

from typing import Annotated

import msgspec

from cutline.edge.api.encoding.embedder import MAX_INPUTS, Embedded
from cutline.edge.api.requests.fields import Rules, read_body
from cutline.edge.api.requests.schema import ChatText

# No option is about rows, and what is too long is refused.
RULES = Rules(ignored={"keep_alive": (str, int, float), "options": (dict,), "truncate": (bool,)})


class OllamaEmbed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A request of `/api/embed`: a text or several. `dimensions` may only be those that the encoder has."""

    model: str | None = None
    input: str | Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_INPUTS)]
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None

    @property
    def parts(self) -> list[ChatText]:
        """Its texts."""
        return [ChatText(text) for text in ([self.input] if isinstance(self.input, str) else self.input)]

    def told(self, made: Embedded) -> OllamaEmbedded:
        """The answer."""
        duration = round(made.seconds * 1e9)
        return OllamaEmbedded(
            model=self.model or made.model,
            embeddings=[row.tolist() for row in made.rows],
            total_duration=duration,
            prompt_eval_count=made.read,
        )


class OllamaEmbedded(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of all texts, in order; durations are in nanoseconds, and the encoder is loaded already."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int = 0
    prompt_eval_count: int


class OllamaEmbedOne(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A request of `/api/embeddings`, as older clients have it: a text."""

    model: str | None = None
    prompt: str

    @property
    def dimensions(self) -> None:
        """None is asked for."""

    @property
    def parts(self) -> list[ChatText]:
        """Its text."""
        return [ChatText(self.prompt)]

    def told(self, made: Embedded) -> OllamaEmbeddedOne:
        """The answer."""
        (row,) = made.rows
        return OllamaEmbeddedOne(embedding=row.tolist())


class OllamaEmbeddedOne(msgspec.Struct, frozen=True):
    """The row of the text."""

    embedding: list[float]


def read_embed(body: bytes) -> OllamaEmbed:
    """The request in a body of JSON. Raises Refused, which names every field that is unknown or not served."""
    return read_body(body, OllamaEmbed, RULES)


def read_embed_one(body: bytes) -> OllamaEmbedOne:
    """Likewise, of the older path."""
    return read_body(body, OllamaEmbedOne, RULES)
