"""How provenance looks in a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from cutline.edge.generation.result import Provenance, Token

STYLES = {Provenance.EDGE: "yellow", Provenance.DRAFT: "green", Provenance.CLOUD: "blue"}


def coloured(tokens: Iterable[Token]) -> Text:
    """The answer, each token in the colour of where it came from."""
    return Text.assemble(*((token.text, STYLES[token.source]) for token in tokens))
