"""Every setting of a dual encoder's files is in a table."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    SiglipConfig,
    SiglipTextConfig,
    SiglipVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from cutline.errors import InputError
from cutline.models.export.encoders.settings import CONFIG, IMAGES, TABLES, TEXT, VISION
from cutline.models.export.settings import check

LIMITED = [
    (where, name, fate.taken)
    for where, table in TABLES.items()
    for name, fate in table.items()
    if fate.fate == "limited"
]


def fields(*kinds: Any) -> set[str]:
    return {field.name for kind in kinds for field in dataclasses.fields(kind)}


@pytest.mark.parametrize(
    ("table", "known"),
    [
        (CONFIG, fields(CLIPConfig, SiglipConfig)),
        (TEXT, fields(CLIPTextConfig, SiglipTextConfig)),
        (VISION, fields(CLIPVisionConfig, SiglipVisionConfig)),
        (
            IMAGES,
            {
                name
                for kind in (CLIPImageProcessorPil, SiglipImageProcessorPil)
                for base in kind.valid_kwargs.__mro__
                for name in getattr(base, "__annotations__", {})
            },
        ),
    ],
    ids=["config", "text", "vision", "images"],
)
def test_every_setting_that_transformers_reads_is_in_a_table(table: dict[str, Any], known: set[str]) -> None:
    assert len(known) > 8
    assert known - table.keys() == set()


@pytest.mark.parametrize(("where", "name", "taken"), LIMITED, ids=[f"{where}-{name}" for where, name, _ in LIMITED])
def test_a_value_that_does_not_run_is_named(where: str, name: str, taken: tuple[Any, ...]) -> None:
    for value in (*taken, None):
        check(Path("folder"), where, {name: value}, TABLES)
    with pytest.raises(InputError, match=f"^folder has {name} .* in {where}"):
        check(Path("folder"), where, {name: 0.125}, TABLES)
