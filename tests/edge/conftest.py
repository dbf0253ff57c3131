from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import SmolVLMForConditionalGeneration

from cutline.demo.publish import write_processor
from cutline.demo.shapes import SHAPES
from cutline.demo.tokenizer import END, PAD, START
from cutline.models.bundle import Bundle, Precision, write_manifest
from cutline.models.export import export_bundle
from cutline.models.export.decoder import export_decoder
from cutline.models.families.smolvlm import FAKE, IMAGE
from cutline.testing.models.random_models import write_text


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the demo's drafter's shape with seeded weights, big enough for the logits to differ plainly."""
    folder = tmp_path_factory.mktemp("hf")
    torch.manual_seed(0)
    shape = SHAPES["drafter"]
    model = SmolVLMForConditionalGeneration(
        shape.config({PAD: 0, START: 1, END: 2, IMAGE: 3} | {str(index): index for index in range(4, 200)})
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2:
                weight.mul_(12.0 if ".text_model.layers." in name else 3.0)
    model.save_pretrained(folder)
    write_text(folder, {PAD: 0, START: 1, END: 2, IMAGE: 3, FAKE: 4}, 200)
    write_processor(folder)
    return folder


@pytest.fixture(scope="session")
def reference(hf_folder: Path) -> Any:
    """The same model in transformers."""
    return SmolVLMForConditionalGeneration.from_pretrained(hf_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def bundle(hf_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The model as a drafter's bundle in fp32."""
    out = tmp_path_factory.mktemp("bundles") / "fp32"
    return export_bundle(hf_folder, out, role="drafter", precision="fp32", name="seeded", progress=lambda step: None)


@pytest.fixture(scope="session")
def quantized(
    bundle: Bundle, reference: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Precision], Bundle]:
    """Makes the model's bundle in another precision, with the same vision tower."""

    def make(precision: Precision) -> Bundle:
        folder = tmp_path_factory.mktemp("bundles") / precision
        shutil.copytree(bundle.path, folder)
        export_decoder(reference, bundle.manifest.family, bundle.manifest.decoder, folder / "decoder.onnx", precision)
        write_manifest(folder, msgspec.structs.replace(bundle.manifest, precision=precision))
        return Bundle.open(folder)

    return make
