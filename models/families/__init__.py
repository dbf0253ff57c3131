"""The families of models, one module each.

To add one, write its module and list it below; or ship it in a package of your own, as an entry point of the group
`cutline.families` whose name is the family's tag: docs/how-to/new-family.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from cutline.models.families.family import Family, Grid
from cutline.models.families.gemma.gemma3 import Gemma3
from cutline.models.families.gemma.gemma4 import Gemma4
from cutline.models.families.gemma.paligemma import PaliGemma
from cutline.models.families.git import Git
from cutline.models.families.internvl import InternVL
from cutline.models.families.lfm2.lfm2vl import Lfm2VL
from cutline.models.families.llava_onevision import LlavaOnevision
from cutline.models.families.minicpm.minicpmv import MiniCPMV
from cutline.models.families.mllama.mllama import Mllama
from cutline.models.families.parts import Ops
from cutline.models.families.positions import COUNTED, Positions
from cutline.models.families.qwen.qwen2vl import Qwen2VL
from cutline.models.families.qwen.qwen3vl import Qwen3VL
from cutline.models.families.qwen.qwen25vl import Qwen25VL
from cutline.models.families.qwen.qwen35 import Qwen35
from cutline.models.families.smolvlm import SmolVLM

GROUP = "cutline.families"
FAMILIES: tuple[type[Family], ...] = (
    SmolVLM,
    Qwen25VL,
    Qwen2VL,
    Qwen3VL,
    Qwen35,
    InternVL,
    Gemma3,
    Gemma4,
    PaliGemma,
    LlavaOnevision,
    Lfm2VL,
    Git,
    Mllama,
    MiniCPMV,
)

__all__ = [
    "COUNTED",
    "FAMILIES",
    "DecodedFamily",
    "Family",
    "Grid",
    "Ops",
    "Positions",
    "UnknownFamily",
    "every_family",
    "family_from",
]

# Of a field in a struct that is read: by `family_from`, as which families there are is not known to the struct's type.
if TYPE_CHECKING:
    DecodedFamily = Family
else:
    DecodedFamily = Any


class UnknownFamily(ValueError):
    """A family that does not come with Cutline, and that no installed package ships."""


def tag_of(family: type[Family]) -> str:
    """By which a manifest names a family."""
    return str(family.__struct_config__.tag)


def every_family() -> tuple[type[Family], ...]:
    """The families that come with Cutline, and those that other packages ship.

    Raises ValueError for an entry point that does not load, or is no family.
    """
    from importlib.metadata import entry_points  # takes 26 ms to import, which nobody else needs

    shipped: list[type[Family]] = []
    for point in entry_points(group=GROUP):
        try:
            found = point.load()
        except Exception as error:  # another package's module may raise anything
            raise ValueError(f"the family {point.name} of {point.value} does not load ({error})") from error
        if not (isinstance(found, type) and issubclass(found, Family) and tag_of(found) == point.name):
            raise ValueError(f"{point.value} is no family with the tag {point.name}")
        if any(tag_of(family) == point.name for family in (*FAMILIES, *shipped)):
            raise ValueError(f"{point.value} has the tag {point.name}, which is another family's")
        shipped.append(found)
    return (*FAMILIES, *shipped)


def family_from(fields: Mapping[str, Any]) -> Family:
    """The family with these `fields`, of a manifest or a shape. Raises ValueError for what none has."""
    kind = fields.get("kind")
    known = next((family for family in FAMILIES if tag_of(family) == kind), None)
    known = known or next((family for family in every_family() if tag_of(family) == kind), None)
    if known is None:
        raise UnknownFamily(f"a model of the family {str(kind)[:40]!r}, which is not installed; install its package")
    try:
        return msgspec.convert(fields, known)
    except msgspec.ValidationError as error:
        raise ValueError(str(error).replace("`$", "`$.family")) from None
