"""Reading a local Hugging Face folder: which models are taken, and what the manifest says about them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    Idefics3ForConditionalGeneration,
    PreTrainedConfig,
    SmolVLMForConditionalGeneration,
)

from cutline.errors import InputError
from cutline.models import smolvlm
from cutline.models.bundle import DecoderSpec, ImageSpec
from cutline.models.export.quiet import quiet
from cutline.models.layerline import LayerLine
from cutline.models.prompt import TEMPLATE
from cutline.models.vocabulary import TOKENIZER

KINDS: dict[str, Any] = {  # of one family, and their classes
    "smolvlm": SmolVLMForConditionalGeneration,
    "idefics3": Idefics3ForConditionalGeneration,  # what SmolVLM was called before it had a class of its own
}


@dataclass(frozen=True, slots=True)
class Source:
    """A model read from `path`: `model` is an instance of a class in `KINDS`.

    `companions` maps the names of the files that a bundle holds beside its model to their content.
    """

    path: Path
    family: str
    model: Any
    companions: dict[str, bytes]
    stop_tokens: tuple[int, ...]
    image_token: int
    line: LayerLine
    image: ImageSpec
    decoder: DecoderSpec


def read_source(path: Path, *, dtype: torch.dtype | None = None) -> Source:
    """Read the folder `path`; weights as `dtype`, or as they are stored. Raises InputError."""
    for name in ("config.json", TOKENIZER):
        if not (path / name).is_file():
            raise InputError(f"{path} is not a Hugging Face folder that can be exported: it has no {name}")
    companions = {TOKENIZER: (path / TOKENIZER).read_bytes(), TEMPLATE: _template(path)}
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{path / 'config.json'} does not read ({_first_line(error)}); {_taken()}") from None
    if config.model_type not in KINDS:
        raise InputError(f"{path} holds a model of the kind {config.model_type}; {_taken()}")
    if config.text_config.model_type != "llama":
        raise InputError(f"{path} has a decoder of the kind {config.text_config.model_type}; {_taken()}")
    model = _read_weights(path, KINDS[config.model_type], dtype)
    text, vision = config.text_config, config.vision_config
    return Source(
        path=path,
        family=smolvlm.FAMILY,
        model=model,
        companions=companions,
        stop_tokens=_stop_tokens(path, model),
        image_token=config.image_token_id,
        line=LayerLine(vision=vision.num_hidden_layers, decoder=text.num_hidden_layers),
        image=_image_spec(path, config),
        decoder=DecoderSpec(
            width=text.hidden_size,
            layers=text.num_hidden_layers,
            kv_heads=text.num_key_value_heads,
            head_dim=text.head_dim,
            vocabulary=text.vocab_size,
            context=text.max_position_embeddings,
        ),
    )


def _taken() -> str:
    return f"supported are {' and '.join(KINDS)}, with a llama decoder"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _read_weights(path: Path, kind: Any, dtype: torch.dtype | None) -> Any:
    try:
        with quiet():
            model, loading = kind.from_pretrained(
                path,
                dtype=dtype or "auto",
                local_files_only=True,
                use_safetensors=True,  # the other format is pickle, which runs code
                output_loading_info=True,
            )
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise InputError(f"the weights of {path} do not load ({_first_line(error)})") from None
    # transformers fills a weight that is missing with random numbers and a warning.
    if missing := sorted(loading["missing_keys"]):
        raise InputError(f"the weights of {path} lack {len(missing)} tensors, {missing[0]} among them")
    return model.eval()


def _stop_tokens(path: Path, model: Any) -> tuple[int, ...]:
    """From generation_config.json where there is one, else from config.json."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        raise InputError(f"neither config.json nor generation_config.json in {path} names an eos_token_id")
    return tuple(sorted(set(ends))) if isinstance(ends, list) else (ends,)


class _Templated(msgspec.Struct):
    chat_template: str | None = None


def _template(path: Path) -> bytes:
    """The chat template: a file of its own, or as older folders have it, a string in one of two JSON files."""
    if (path / TEMPLATE).is_file():
        return (path / TEMPLATE).read_bytes()
    for file in (path / "chat_template.json", path / "tokenizer_config.json"):
        if not file.is_file():
            continue
        try:
            said = msgspec.json.decode(file.read_bytes(), type=_Templated).chat_template
        except msgspec.MsgspecError as error:
            raise InputError(f"the chat template in {file} does not read: {error}") from None
        if said is not None:
            return said.encode()
    raise InputError(f"{path} is not a Hugging Face folder that can be exported: it has no {TEMPLATE}")


def _image_spec(path: Path, config: PreTrainedConfig) -> ImageSpec:
    """From the folder's image processor where it has one; else one tile of the tower's own size, never split."""
    vision = config.vision_config
    tile = vision.image_size
    tokens = (tile // vision.patch_size // config.scale_factor) ** 2
    said = _processor(path)
    if said is None:
        return ImageSpec(tile=tile, tokens=tokens, longest_edge=tile, split=False)
    try:
        if said["max_image_size"]["longest_edge"] != tile:
            raise InputError(f"the image processor in {path} makes tiles that the tower of {tile} pixels does not take")
        return ImageSpec(
            tile=tile,
            tokens=tokens,
            longest_edge=said["size"]["longest_edge"],
            split=said["do_image_splitting"],
            mean=tuple(said["image_mean"]),
            std=tuple(said["image_std"]),
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"the image processor in {path} does not read: {error}") from None


def _processor(path: Path) -> dict[str, Any] | None:
    """The image processor's settings. transformers 5 nests them in the whole processor's, older ones do not."""
    try:
        if (path / "preprocessor_config.json").is_file():
            return msgspec.json.decode((path / "preprocessor_config.json").read_bytes(), type=dict[str, Any])
        if (path / "processor_config.json").is_file():
            whole = msgspec.json.decode((path / "processor_config.json").read_bytes(), type=dict[str, Any])
            return msgspec.convert(whole.get("image_processor"), dict[str, Any] | None)
    except msgspec.MsgspecError as error:
        raise InputError(f"the image processor in {path} does not read: {error}") from None
    return None
