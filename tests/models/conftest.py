"""What the tests of models share: a model of the SmolVLM architecture, small enough to make on the spot."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cutline.models.export import make, vision
from cutline.models.families import Family

Configured = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def tiny() -> Configured:
    """The configuration of one: heads wider than width / heads, twice as many for queries as for keys and values."""

    def configured(*, tied: bool = True, **text: Any) -> dict[str, Any]:
        return {
            "image_token_id": 7,
            "scale_factor": 2,
            "tie_word_embeddings": tied,
            "pad_token_id": 0,
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 32,
                "patch_size": 8,
            },
            "text_config": {
                "model_type": "llama",
                "vocab_size": 90,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "max_position_embeddings": 64,
                "tie_word_embeddings": tied,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
                **text,
            },
        }

    return configured


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., float]:
    """`export_vision`, which exports towers of equal weights once."""
    kept, export = tmp_path_factory.mktemp("towers"), vision.export_vision
    errors: dict[str, float] = {}

    def exported(model: Any, family: Family, folder: Path, cuts: Sequence[str]) -> float:
        sums = [weight.double().sum().item() for weight in model.model.state_dict().values()]
        name = f"{hash((tuple(sums), tuple(cuts)))}"
        if name not in errors:
            (kept / name).mkdir()
            errors[name] = export(model, family, kept / name, cuts)
        shutil.copytree(kept / name, folder, dirs_exist_ok=True)
        return errors[name]

    return exported


@pytest.fixture
def one_tower(towers: Callable[..., float], monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test of anything but towers: torch's exporter takes most of an export's time."""
    monkeypatch.setattr(make, "export_vision", towers)
