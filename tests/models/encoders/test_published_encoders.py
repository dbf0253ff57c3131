"""Folders as people have them: by the keys of published configuration files, reduced, with seeded weights.

The facts are those of CLIP ViT-B/32 and ViT-L/14, of SigLIP base and SO400M, and of SigLIP 2 base at 512 pixels.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoConfig, CLIPModel, SiglipModel

from cutline.edge.inference.encoder import Encoder
from cutline.models.encoders.tokenizer import TextTokenizer
from cutline.models.export.encoders.source import read_encoder
from cutline.models.images import as_png
from cutline.testing.models.encoders import OriginalEncoder, exported
from cutline.testing.models.random_encoders import TEXT, VISION, make_encoder
from cutline.testing.models.random_models import seeded

Facts = dict[str, Any]

TEXTS = ["a photo of a cat", "a person"]
SMALL = {"num_hidden_layers": 1}
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
OLD: Facts = {  # defaults of generation, which transformers once wrote into every part
    "add_cross_attention": False,
    "chunk_size_feed_forward": 0,
    "diversity_penalty": 0.0,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "is_encoder_decoder": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "tie_encoder_decoder": False,
    "torchscript": False,
    "use_bfloat16": False,
}
CLIP_IMAGES: Facts = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": MEAN,
    "image_processor_type": "CLIPImageProcessor",
    "image_std": STD,
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 224},
}
SIGLIP_IMAGES: Facts = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_processor_type": "SiglipImageProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 224, "width": 224},
}


def clip(patch: int, end: int | None, **text: Any) -> Facts:
    return {
        "architectures": ["CLIPModel"],
        "initializer_factor": 1.0,
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": 24,
        "text_config": {"model_type": "clip_text_model", "hidden_act": "quick_gelu", "projection_dim": 512}
        | ({} if end is None else {"eos_token_id": end})
        | text,
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": 224,
            "patch_size": patch,
            "projection_dim": 512,
        },
    }


def siglip(text: Facts, **vision: Any) -> Facts:
    return {
        "architectures": ["SiglipModel"],
        "initializer_factor": 1.0,
        "model_type": "siglip",
        "text_config": {"model_type": "siglip_text_model"} | text,
        "torch_dtype": "float32",
        "transformers_version": "4.42.4",
        "vision_config": {"model_type": "siglip_vision_model"} | vision,
    }


PUBLISHED: dict[str, tuple[str, Facts, dict[str, Facts]]] = {
    "ViT-B/32, which says that texts end with token 2": (
        "clip",
        clip(32, 2, **OLD),
        {"preprocessor_config.json": CLIP_IMAGES},
    ),
    "ViT-L/14, its processor in one file": (
        "clip",
        clip(14, None),
        {"processor_config.json": {"image_processor": CLIP_IMAGES, "processor_class": "CLIPProcessor"}},
    ),
    "ViT-B/32 of before there were image processors": (
        "clip",
        clip(32, 2),
        {
            "preprocessor_config.json": {
                "crop_size": 224,
                "do_center_crop": True,
                "do_normalize": True,
                "do_resize": True,
                "feature_extractor_type": "CLIPFeatureExtractor",
                "image_mean": MEAN,
                "image_std": STD,
                "resample": 3,
                "size": 224,
            }
        },
    ),
    "SigLIP base, almost all by default, with names that no release reads": (
        "siglip",
        siglip({}),
        {"preprocessor_config.json": SIGLIP_IMAGES | {"mean": [0.1] * 3, "std": [0.2] * 3}},
    ),
    "SO400M, whose patches do not fill the picture": (
        "siglip",
        siglip({"num_attention_heads": 2}, image_size=384, patch_size=14),
        {"preprocessor_config.json": SIGLIP_IMAGES | {"size": {"height": 384, "width": 384}}},
    ),
    "SigLIP 2 base": (
        "siglip2",
        siglip({}, image_size=512) | {"architectures": None},
        {
            "preprocessor_config.json": SIGLIP_IMAGES
            | {"size": {"height": 512, "width": 512}, "resample": 2, "do_convert_rgb": None}
        },
    ),
}


def write(folder: Path, kind: str, config: Facts, files: dict[str, Facts]) -> Path:
    """The folder: its files as they are, but for widths, layers and the vocabulary."""
    made = json.loads((make_encoder(kind, folder) / "config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    words = {name: made["text_config"][name] for name in ("vocab_size", "max_position_embeddings")}
    ends = {"bos_token_id": made["text_config"]["bos_token_id"]}
    if kind == "clip" and "eos_token_id" not in config["text_config"]:
        ends["eos_token_id"] = made["text_config"]["eos_token_id"]
    width = {"projection_size": VISION["hidden_size"]} if kind != "clip" else {}
    vision = {name: VISION[name] for name in VISION if name not in ("image_size", "patch_size")}
    reduced = config | {
        "text_config": config["text_config"] | TEXT | SMALL | words | ends | width,
        "vision_config": config["vision_config"] | vision | SMALL,
    }
    (folder / "config.json").write_text(json.dumps(reduced))
    model = seeded(CLIPModel if kind == "clip" else SiglipModel, AutoConfig.from_pretrained(folder))
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(reduced))
    for name, said in files.items():
        (folder / name).write_text(json.dumps(said))
    return folder


@pytest.mark.parametrize("name", PUBLISHED)
def test_its_pixels_and_ids_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "folder", *PUBLISHED[name])
    source, theirs = read_encoder(folder), OriginalEncoder(folder)
    source.manifest(name="x", precision="fp32")
    for size in ((301, 150), (90, 700), (640, 480)):
        image = Image.linear_gradient("L").convert("RGB").resize(size)
        assert np.array_equal(source.images.preprocess(image), theirs.pixels([image]))
    tokenizer = TextTokenizer.read(source.tokenizer, source.texts)
    for text in TEXTS:
        assert np.array_equal(tokenizer.encode(text), theirs.ids([text])["input_ids"])


@pytest.mark.proof
@pytest.mark.parametrize("name", PUBLISHED)
def test_it_scores_as_transformers(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "folder", *PUBLISHED[name])
    encoder = Encoder(exported(folder, tmp_path / "bundle"), threads=1)
    image = Image.linear_gradient("L").convert("RGB").resize((640, 480))
    scores = encoder.classify([as_png(image)], TEXTS)
    assert scores == pytest.approx(OriginalEncoder(folder).probabilities([image], TEXTS), rel=1e-3)


def test_siglip_2_with_gemmas_own_tokenizer(tmp_path: Path) -> None:
    """As its published folders say: what that class of transformers makes of it counts."""
    folder = make_encoder("siglip2", tmp_path)
    said = {"tokenizer_class": "GemmaTokenizer", "add_eos_token": True, "add_bos_token": False, "pad_token": "<pad>"}
    for side in ("left", "right"):
        more = {"padding_side": side, "model_max_length": 16}
        (folder / "tokenizer_config.json").write_text(json.dumps(said | more))
        source, theirs = read_encoder(folder), OriginalEncoder(folder)
        tokenizer = TextTokenizer.read(source.tokenizer, source.texts)
        assert source.texts.pads_left == (side == "left")
        for text in TEXTS:
            assert np.array_equal(tokenizer.encode(text), theirs.ids([text])["input_ids"])
