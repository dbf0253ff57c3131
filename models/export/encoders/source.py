"""Reads a local Hugging Face folder of a dual encoder, checks that it is supported, and derives the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig

from cutline.errors import InputError
from cutline.models.bundle import FORMAT, Precision
from cutline.models.encoders.bundle import EncoderManifest
from cutline.models.encoders.images import ImageRules
from cutline.models.encoders.scores import ScoreRules
from cutline.models.encoders.tokenizer import TextRules
from cutline.models.export.encoders.settings import TABLES
from cutline.models.export.encoders.texts import read_texts
from cutline.models.export.folder import Settings, first_line, settings_of
from cutline.models.export.quiet import quiet
from cutline.models.export.settings import check, check_flat, shown
from cutline.models.export.source import read_weights
from cutline.models.families import FAMILIES
from cutline.models.families.checks import channels

CONFIG = "config.json"
PROCESSOR, IMAGES, TOKENS = "processor_config.json", "preprocessor_config.json", "tokenizer_config.json"
CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel"}  # by the kind of a folder
PROCESSORS = ("CLIPImageProcessor", "SiglipImageProcessor")


@dataclass(frozen=True, slots=True)
class EncoderSource:
    """A dual encoder of transformers read from `path`, in fp32; `tokenizer` is the content of its tokenizer.json."""

    path: Path
    model: Any
    tokenizer: bytes
    images: ImageRules
    texts: TextRules

    @property
    def kind(self) -> str:
        """Its kind, a key of CLASSES."""
        return str(self.model.config.model_type)

    def manifest(self, *, name: str, precision: Precision) -> EncoderManifest:
        """The manifest of its bundle, with no files yet. Raises InputError."""
        vision = self.model.config.vision_config
        classes = 1 if self.kind == "clip" else 0  # a row beside those of patches
        bias = self.model.logit_bias.item() if self.kind == "siglip" else 0.0
        fields = {
            "format": FORMAT,
            "name": name,
            "role": "encoder",
            "precision": precision,
            "family": self.kind,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "patches": (vision.image_size // vision.patch_size) ** 2 + classes,
            "dimensions": self.model.config.projection_dim if self.kind == "clip" else vision.hidden_size,
            "images": self.images,
            "texts": self.texts,
            "scores": ScoreRules(
                kind="softmax" if self.kind == "clip" else "sigmoid",
                scale=self.model.logit_scale.exp().item(),
                bias=bias,
            ),
            "files": {},
        }
        try:
            return msgspec.convert(msgspec.to_builtins(fields), EncoderManifest)
        except msgspec.ValidationError as error:
            raise InputError(f"{self.path} has sizes that do not run here: {error}") from None


def read_encoder(path: Path) -> EncoderSource:
    """Read the folder `path`. Raises InputError."""
    kind = _kind(path)
    said = {name: settings_of(path / name) or {} for name in (PROCESSOR, IMAGES, TOKENS)}
    for name, settings in said.items():
        check(path, name, settings, TABLES)
    config = _config(path)
    images = _images(path, config.vision_config.image_size)
    tokenizer, texts = read_texts(path, kind, config.text_config, said[TOKENS])
    return EncoderSource(path=path, model=_weights(path), tokenizer=tokenizer, images=images, texts=texts)


def _kind(path: Path) -> str:
    """The kind that config.json names. Raises InputError for an unsupported model, before anything else is read."""
    taken = f"an encoder is one of {' and '.join(CLASSES)}"
    said = settings_of(path / CONFIG)
    if said is None:
        raise InputError(f"{path} is not a Hugging Face folder that can be exported: it has no {CONFIG}; {taken}")
    kind, classes = said.get("model_type"), said.get("architectures", [])
    if kind not in CLASSES:
        answers = any(kind in family.kinds for family in FAMILIES)
        other = "export it with --role drafter or target" if answers else taken
        raise InputError(f"{path} holds a model of the kind {shown(kind)}; {other}")
    if classes and classes != [CLASSES[kind]]:
        raise InputError(f"{path} has architectures {shown(classes)} in {CONFIG}; supported: {CLASSES[kind]}")
    check(path, CONFIG, said, TABLES)
    check_flat(path, said)
    for part in ("text_config", "vision_config"):
        inside = said.get(part, {})
        if not isinstance(inside, dict):
            raise InputError(f"{path} has {part} {shown(inside)} in {CONFIG}, where an object is supported")
        check(path, f"{CONFIG}, {part}", inside, TABLES)
    return str(kind)


def _config(path: Path) -> PreTrainedConfig:
    """The config as transformers reads it, with defaults for missing settings. Raises InputError."""
    try:
        with quiet():
            config: PreTrainedConfig = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            check(path, CONFIG, {"projection_dim": getattr(config, "projection_dim", None)}, TABLES)
            check(path, f"{CONFIG}, text_config", config.text_config.to_dict(), TABLES)
            check(path, f"{CONFIG}, vision_config", config.vision_config.to_dict(), TABLES)
    except InputError:
        raise
    except Exception as error:  # a config may have any value anywhere, and transformers may raise anything on it
        raise InputError(f"{path / CONFIG} does not read ({first_line(error)})") from None
    vision, text = config.vision_config, config.text_config
    for name in ("image_size", "patch_size"):
        if not isinstance(value := getattr(vision, name), int):
            raise InputError(f"{path} has {name} {shown(value)} in {CONFIG}, vision_config; supported: one number")
    if vision.patch_size > vision.image_size:
        raise InputError(f"{path} has patch_size {vision.patch_size} in {CONFIG}, and images of {vision.image_size}")
    if config.model_type == "siglip" and text.projection_size != vision.hidden_size:
        raise InputError(
            f"{path} has projection_size {text.projection_size} in {CONFIG}, text_config, and images' rows of "
            f"{vision.hidden_size}; texts and images cannot be compared"
        )
    return config


def _images(path: Path, side: int) -> ImageRules:
    """What the folder's image processor does, with the defaults of its class. Raises InputError."""
    said = (settings_of(path / PROCESSOR) or {}).get("image_processor") or settings_of(path / IMAGES)
    if not isinstance(said, dict):
        raise InputError(f"{path} has no image processor: neither {IMAGES} nor an image_processor in {PROCESSOR}")
    try:
        with quiet():
            made = AutoImageProcessor.from_pretrained(
                path, backend="pil", local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # as for a config
        named = f"image_processor_type {shown(said.get('image_processor_type'))}"
        raise InputError(f"the image processor in {path} does not read: {named} ({first_line(error)})") from None
    if (name := type(made).__name__.removesuffix("Pil")) not in PROCESSORS:
        raise InputError(f"{path} has an image_processor_type {name!r}; supported: {' or '.join(PROCESSORS)}")
    # For a null value the default of the class counts.
    settings: Settings = {
        name: getattr(type(made), name, None) if value is None else value for name, value in made.to_dict().items()
    }
    check(path, IMAGES, settings, TABLES)
    resized, crop = dict(settings["size"]), settings.get("crop_size") if settings.get("do_center_crop") else None
    if crop is not None and dict(crop) != {"height": side, "width": side}:
        raise InputError(f"{path} has crop_size {shown(dict(crop))} in {IMAGES}, and a tower of {side} pixels")
    if crop is None and resized != {"height": side, "width": side}:
        raise InputError(f"{path} has size {shown(resized)} in {IMAGES}, and a tower of {side} pixels")
    try:
        return msgspec.convert(_rules(resized, side, settings), ImageRules)
    except (msgspec.ValidationError, ValueError) as error:
        raise InputError(f"{path} has {IMAGES} that does not run here: {error}") from None


def _rules(resized: Mapping[str, Any], side: int, settings: Settings) -> Settings:
    """The fields of ImageRules. Raises ValueError."""
    if resized.keys() == {"height", "width"}:
        how: Settings = {"stretched": (resized["width"], resized["height"])}
    elif resized.keys() == {"shortest_edge"}:
        how = {"shortest_edge": resized["shortest_edge"]}
    else:
        raise ValueError(f"size {shown(dict(resized))}, where a shortest_edge, or height and width are supported")
    resample = settings["resample"]
    return {
        "side": side,
        **how,
        "resample": int(resample) if isinstance(resample, int) else resample,  # one of Pillow's enum
        "mean": channels("image_mean", settings["image_mean"]),
        "std": channels("image_std", settings["image_std"]),
    }


def _weights(path: Path) -> Any:
    """The model in fp32. Raises InputError for weights that are missing, of other sizes, or no numbers."""
    model = read_weights(AutoModel, path, torch.float32)
    for name, weight in model.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise InputError(f"the weights of {path} are no numbers in {name}; fetch the folder again")
    return model
