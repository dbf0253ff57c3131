"""Keeping the exporters' chatter off the terminal, without losing it when they fail."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back what is printed, warned or logged below an error; an exception carries what was said as a note."""
    said = io.StringIO()
    # With a handler in place, onnxruntime's quantizer does not configure the root logger when it is imported.
    handler = logging.StreamHandler(said)
    logging.getLogger().addHandler(handler)
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # torch's loggers have handlers of their own
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        error.add_note(said.getvalue())
        raise
    finally:
        logging.disable(disabled)
        logging.getLogger().removeHandler(handler)
