"""Pages that people open in a browser: one file each that needs nothing else, in one look.

A template escapes every text by itself; only plots, drawn from numbers and our own names, pass as they are.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from minijinja import Environment

LOOK = "report.css"


def render_page(package: str, template: str, **values: Any) -> str:
    """A `template` of a package, which may include the look, with these values; the same input gives the same page."""
    own, shared = resources.files(package), resources.files("cutline.evaluation")
    pages = Environment(
        loader=lambda name: (shared if name == LOOK else own).joinpath(name).read_text(encoding="utf-8"),
        undefined_behavior="strict",
    )
    return pages.render_template(template, **values)
