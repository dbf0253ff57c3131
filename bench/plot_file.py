"""How the plots of all measurements become files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from cutline.core.storage.files import write_file


def save_plot(figure: Figure, path: Path, **options: Any) -> None:
    """Draw `figure` into `path` in the format of its suffix, with `options` of savefig. Raises as `write_file`."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:] or "png", **options)
    write_file(path, drawn.getvalue())
