"""File names as printable text."""

from __future__ import annotations


def printable(name: str) -> str:
    r"""A file's name with each byte that is not UTF-8 escaped, as `\xff`.

    Python decodes such a byte to a lone surrogate, which neither JSON nor a pipe can encode.
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
