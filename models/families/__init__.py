"""The families of models that run here, one module each: to add one, write its module and name it below."""

from typing import get_args

from cutline.models.families.family import COUNTED, Family, Grid, Positions
from cutline.models.families.qwen25vl import Qwen25VL
from cutline.models.families.smolvlm import SmolVLM

AnyFamily = SmolVLM | Qwen25VL  # by which a manifest is read
FAMILIES: tuple[type[AnyFamily], ...] = get_args(AnyFamily)

__all__ = ["COUNTED", "FAMILIES", "AnyFamily", "Family", "Grid", "Positions"]
