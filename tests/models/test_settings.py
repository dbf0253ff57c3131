"""Every setting of a model's files is in a table, and what does not run is refused by its name and value."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    Gemma4Config,
    GemmaConfig,
    GenerationConfig,
    Idefics3Config,
    InternVLConfig,
    InternVLVisionConfig,
    Lfm2Config,
    Lfm2VlConfig,
    LlamaConfig,
    LlavaOnevisionConfig,
    PaliGemmaConfig,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen3Config,
    Qwen3VLConfig,
    Siglip2VisionConfig,
    SiglipVisionConfig,
    SmolVLMConfig,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma4.configuration_gemma4 import Gemma4TextConfig, Gemma4VisionConfig
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig, Qwen2VLVisionConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5Config, Qwen3_5TextConfig, Qwen3_5VisionConfig
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig, Qwen3VLVisionConfig
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from cutline.errors import InputError
from cutline.models.export import settings
from cutline.models.export.settings import CONFIG, GENERATION, IMAGES, TABLES, TEXT, VISION, check

MODELS = (
    SmolVLMConfig,
    Idefics3Config,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3VLConfig,
    Qwen3_5Config,
    InternVLConfig,
    Gemma3Config,
    Gemma4Config,
    PaliGemmaConfig,
    LlavaOnevisionConfig,
    Lfm2VlConfig,
)
DECODERS = (
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen2_5_VLTextConfig,
    Qwen2VLTextConfig,
    Qwen3VLTextConfig,
    Qwen3_5TextConfig,
    GemmaConfig,
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    Lfm2Config,
)
TOWERS = (
    SmolVLMVisionConfig,
    Idefics3VisionConfig,
    Qwen2_5_VLVisionConfig,
    Qwen2VLVisionConfig,
    Qwen3VLVisionConfig,
    Qwen3_5VisionConfig,
    InternVLVisionConfig,
    SiglipVisionConfig,
    Siglip2VisionConfig,
    Gemma4VisionConfig,
)
PROCESSORS = (
    SmolVLMImageProcessorPil,
    Qwen2VLImageProcessorPil,
    GotOcr2ImageProcessorPil,
    Gemma3ImageProcessorPil,
    Gemma4ImageProcessorPil,
    SiglipImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
)
LIMITED = [
    (where, name, setting.taken)
    for where, table in TABLES.items()
    for name, setting in table.items()
    if setting.fate == "limited"
]


def fields(*kinds: Any) -> set[str]:
    return {field.name for kind in kinds for field in dataclasses.fields(kind)}


@pytest.mark.parametrize(
    ("table", "known"),
    [
        (GENERATION, {name for name in vars(GenerationConfig()) if not name.startswith("_") or name == "_commit_hash"}),
        (CONFIG, fields(*MODELS)),
        (TEXT, fields(*DECODERS)),
        (VISION, fields(*TOWERS)),
        (
            IMAGES,
            {
                name
                for kind in PROCESSORS
                for base in kind.valid_kwargs.__mro__
                for name in getattr(base, "__annotations__", {})
            },
        ),
    ],
    ids=["generation", "config", "text", "vision", "images"],
)
def test_every_setting_that_transformers_reads_is_in_a_table(table: dict[str, Any], known: set[str]) -> None:
    assert len(known) > 8
    assert known - table.keys() == set()


@pytest.mark.parametrize(("where", "name", "taken"), LIMITED, ids=[f"{where}-{name}" for where, name, _ in LIMITED])
def test_a_value_that_does_not_run_is_named(where: str, name: str, taken: tuple[Any, ...]) -> None:
    for value in (*taken, None):
        check(Path("folder"), where, {name: value})
    for value in ({"some": "thing"}, 0.125, 7):
        with pytest.raises(InputError, match=f"^folder has {name} .* in {where}") as refused:
            check(Path("folder"), where, {name: value})
        assert repr(value) in str(refused.value)


def test_what_is_no_setting_changes_nothing() -> None:
    for where in TABLES:
        check(Path("folder"), where, {"notes_of_somebody": {"any": "thing"}, "neftune_noise_alpha": 0.5})


@pytest.mark.parametrize("value", [0.00392156862745098, 1 / 255])
def test_a_rescaling_is_taken_as_it_is_written(value: float) -> None:
    check(Path("folder"), "preprocessor_config.json", {"rescale_factor": value})


def test_a_long_value_is_cut_in_an_error() -> None:
    assert len(settings.shown(list(range(1000)))) < 100
