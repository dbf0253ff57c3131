"""The standard streams of a command: what cannot be written is an error of one line, or quiet where nobody reads."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

from cutline.errors import StorageError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


UNREAD = 141  # what shells show for a program that wrote into a pipe whose reader had gone


class Unread(Exception):
    """Nobody reads the output any more. No OSError, which the library of the command line would end the process for."""


class Output(io.FileIO):
    """A file whose failed writes are told from those of other files."""

    def write(self, data: ReadableBuffer, /) -> int:
        """Write some of `data`. Raises StorageError, or Unread."""
        try:
            return super().write(data)
        except BrokenPipeError:
            raise Unread from None
        except OSError as error:
            raise StorageError(f"the output cannot be written: {error.strerror}") from None


def open_output() -> None:
    """Write to stdout through `Output`. What an encoding lacks is escaped on both streams, and never an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    stream = sys.stdout
    if stream is sys.__stdout__ and isinstance(stream, io.TextIOWrapper):
        raw = Output(stream.fileno(), "w", closefd=False)
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=stream.line_buffering
        )


def close_output() -> None:
    """Write what is still held back. Raises as `Output.write` does."""
    sys.stdout.flush()


def drop_output() -> None:
    """Write what is still held back; what cannot be written is forgotten, or it would be tried again at the end."""
    try:
        sys.stdout.flush()
    except (StorageError, Unread):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
