"""Suppresses the exporters' output, and adds it to the exception if they fail."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Capture prints, warnings, and logs below an error; an exception gets the captured text as a note."""
    captured = io.StringIO()
    # onnxruntime's quantizer configures the root logger on import unless that has a handler.
    handler = logging.StreamHandler(captured)
    logging.getLogger().addHandler(handler)
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # torch's loggers have handlers of their own
    try:
        with contextlib.redirect_stdout(captured), contextlib.redirect_stderr(captured), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        error.add_note(captured.getvalue())
        raise
    finally:
        logging.disable(disabled)
        logging.getLogger().removeHandler(handler)
