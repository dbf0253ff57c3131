"""The supported families of models, one module each. To add one, write its module and list it below."""

from typing import get_args

from cutline.models.families.family import COUNTED, Family, Grid, Ops, Positions
from cutline.models.families.gemma3 import Gemma3
from cutline.models.families.internvl import InternVL
from cutline.models.families.paligemma import PaliGemma
from cutline.models.families.qwen2vl import Qwen2VL
from cutline.models.families.qwen3vl import Qwen3VL
from cutline.models.families.qwen25vl import Qwen25VL
from cutline.models.families.smolvlm import SmolVLM

# The type of the family in a manifest.
AnyFamily = (
    SmolVLM | Qwen25VL | Qwen2VL | Qwen3VL | InternVL | Gemma3 | PaliGemma
)  # the type of the family in a manifest
FAMILIES: tuple[type[AnyFamily], ...] = get_args(AnyFamily)

__all__ = ["COUNTED", "FAMILIES", "AnyFamily", "Family", "Grid", "Ops", "Positions"]
