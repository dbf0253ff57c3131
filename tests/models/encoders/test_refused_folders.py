"""Folders that no encoder's bundle can be made of: one line each, that names what was wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cutline.errors import BundleError, InputError
from cutline.models.bundle import Bundle
from cutline.models.encoders.bundle import EncoderBundle
from cutline.models.export.encoders import export_encoder
from cutline.models.export.encoders.source import read_encoder
from cutline.models.export.source import read_source
from cutline.testing.models.random_encoders import make_encoder

Change = Callable[[Path], object]


def edited(name: str, **changes: Any) -> Change:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | changes))

    return change


def inside(part: str, **changes: Any) -> Change:
    def change(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        content[part] |= changes
        (folder / "config.json").write_text(json.dumps(content))

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def changed(folder: Path) -> None:
        held = load_file(folder / "model.safetensors")
        change(held)
        save_file(held, folder / "model.safetensors", metadata={"format": "pt"})

    return changed


def without(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


IMAGES, TOKENS = "preprocessor_config.json", "tokenizer_config.json"
LAYER = "vision_model.encoder.layers.1.mlp.fc1.weight"
REFUSED: list[tuple[str, Change, str]] = [
    ("clip", without("config.json"), "has no config.json; an encoder is one of clip and siglip"),
    ("clip", edited("config.json", model_type="siglip2"), "of the kind 'siglip2'; an encoder is one of"),
    ("clip", edited("config.json", model_type="smolvlm"), "of the kind 'smolvlm'; export it with --role drafter"),
    ("clip", edited("config.json", architectures=["CLIPVisionModel"]), r"architectures \['CLIPVisionModel'\]"),
    ("clip", edited("config.json", quantization_config={"quant_method": "awq"}), "quantization_config .*'awq'"),
    ("clip", edited("config.json", projection_dim=0), "projection_dim 0"),
    ("clip", edited("config.json", vision_config=[1]), r"vision_config \[1\]"),
    ("clip", inside("vision_config", num_channels=1), "num_channels 1"),
    ("clip", inside("vision_config", image_size=[32, 32]), r"image_size \[32, 32\]"),
    ("clip", inside("vision_config", patch_size=64), "patch_size 64"),
    ("clip", inside("vision_config", num_hidden_layers=10**6), "num_hidden_layers 1000000"),
    ("siglip", inside("vision_config", vision_use_head=False), "vision_use_head False"),
    ("siglip", inside("text_config", projection_size=24), "projection_size 24 .* rows of 48"),
    ("clip", without(IMAGES), "no image processor"),
    ("clip", edited(IMAGES, do_rescale=False), "do_rescale False"),
    ("clip", edited(IMAGES, do_resize=False), "do_resize False"),
    ("clip", edited(IMAGES, do_pad=True), "do_pad True"),
    ("clip", edited(IMAGES, do_center_crop=False), "size .*shortest_edge.* tower of 32 pixels"),
    ("clip", edited(IMAGES, crop_size={"height": 30, "width": 32}), "crop_size .*30.* tower of 32 pixels"),
    ("clip", edited(IMAGES, size={"shortest_edge": 16}), "smaller than the tower's 32 pixels"),
    ("clip", edited(IMAGES, size={"longest_edge": 64}), "size .*longest_edge"),
    ("clip", edited(IMAGES, resample=9), "resample|9"),
    ("clip", edited(IMAGES, image_std=[0.1, 0.0, 0.1]), r"std"),
    ("siglip", edited(IMAGES, size={"height": 64, "width": 32}), "size .*64.* tower of 32 pixels"),
    ("siglip", edited(IMAGES, image_processor_type="ViTImageProcessor"), "image_processor_type 'ViTImageProcessor'"),
    ("clip", without("tokenizer.json"), "has no tokenizer.json"),
    ("clip", lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer of .* does not read"),
    ("siglip", lambda folder: (folder / "tokenizer.json").write_text("{}"), "does not read as a tokenizer"),
    ("clip", inside("text_config", eos_token_id=5), "eos_token_id 5, and a tokenizer that ends a text with"),
    ("clip", inside("text_config", vocab_size=100), "has a token .* in tokenizer.json, and a text tower of 100"),
    ("clip", edited(TOKENS, split_special_tokens=True), "split_special_tokens True"),
    ("siglip", edited(TOKENS, do_lower_case=False), "do_lower_case False"),
    ("siglip", edited(TOKENS, pad_token="<nothing>"), "has no pad_token"),
    ("siglip2", edited(TOKENS, tokenizer_class="Nothing", model_max_length=1), "model_max_length 1"),
    ("clip", without("model.safetensors"), "weights of .* do not load"),
    ("clip", lambda folder: (folder / "model.safetensors").write_bytes(b"some"), "weights of .* do not load"),
    ("clip", weights(lambda held: held.pop(LAYER)), f"lack 1 tensors, {LAYER}"),
    ("siglip", weights(lambda held: held.pop("logit_bias")), "lack 1 tensors, logit_bias"),
    ("clip", weights(lambda held: held[LAYER][0].fill_(torch.nan)), f"no numbers in {LAYER}"),
    ("clip", weights(lambda held: held.update({LAYER: torch.zeros(3, 3)})), "weights of .* do not load"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("folders")
    for kind in {kind for kind, _, _ in REFUSED}:
        make_encoder(kind, made / kind)
    return made


@pytest.mark.parametrize(("kind", "change", "words"), REFUSED, ids=[words for _, _, words in REFUSED])
def test_a_folder_that_does_not_run_is_refused_by_name(
    kind: str, change: Change, words: str, folders: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(folders / kind, folder)
    read_encoder(folder).manifest(name="whole", precision="fp32")
    change(folder)
    with pytest.raises(InputError, match=words) as refused:
        read_encoder(folder)
    assert "\n" not in str(refused.value)


def test_a_tokenizer_that_keeps_capitals_is_none_of_siglip(folders: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(folders / "siglip", folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(content | {"normalizer": None}))
    with pytest.raises(InputError, match="keeps capitals or punctuation"):
        read_encoder(folder)


def test_an_older_folder_of_clip_ends_texts_with_the_highest_token(folders: Path, tmp_path: Path) -> None:
    """Whose config says 2, whatever the tokenizer has there."""
    folder = tmp_path / "folder"
    shutil.copytree(folders / "clip", folder)
    inside("text_config", eos_token_id=2)(folder)
    assert read_encoder(folder).texts == read_encoder(folders / "clip").texts


def test_roles_are_not_mistaken_for_each_other(folders: Path, encoders: Any, tmp_path: Path) -> None:
    from cutline.demo.bundles import DRAFTER

    with pytest.raises(InputError, match=r"of the kind clip; supported are .*; export it with --role encoder"):
        read_source(folders / "clip")
    _, bundle = encoders("clip")
    with pytest.raises(BundleError, match="holds an encoder, which answers no question"):
        Bundle.open(bundle.path)
    with pytest.raises(BundleError, match="holds a drafter; `cutline export --role encoder`"):
        EncoderBundle.open(DRAFTER)
    with pytest.raises(InputError, match="fp32 or int8"):
        export_encoder(folders / "clip", tmp_path / "out", precision="int4", name="x", progress=lambda step: None)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: (path / "text.data").write_bytes(b""), "text.data in .*hash differs"),
        (lambda path: (path / "text.onnx").unlink(), "text.onnx is missing"),
        (lambda path: (path / "more.bin").write_bytes(b""), "more.bin .* is not in the manifest"),
        (lambda path: (path / "manifest.json").write_text("{}"), "manifest .* does not read"),
        (
            lambda path: (path / "manifest.json").write_text((path / "manifest.json").read_text().replace("2", "3")),
            "manifest .* does not read",
        ),
        (lambda path: (path / "manifest.json").unlink(), "no bundle at"),
    ],
)
def test_a_bundle_that_was_changed_is_refused(spoil: Change, words: str, encoders: Any, tmp_path: Path) -> None:
    _, bundle = encoders("clip")
    shutil.copytree(bundle.path, tmp_path / "copy")
    EncoderBundle.open(tmp_path / "copy")
    spoil(tmp_path / "copy")
    with pytest.raises(BundleError, match=words):
        EncoderBundle.open(tmp_path / "copy")
