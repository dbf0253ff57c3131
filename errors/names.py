"""Names that the system gives, as text."""

from __future__ import annotations


def printable(name: str) -> str:
    r"""A file's name as text that can be written anywhere: a byte that is no UTF-8 stands as `\xff`.

    Python stands for such bytes with code points that are no characters, which neither JSON nor a pipe takes.
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
