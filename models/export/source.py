"""Reading a local Hugging Face folder: which models are taken, and what the manifest says about them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig

from cutline.errors import InputError
from cutline.models.bundle import FORMAT, DecoderSpec, Manifest, Precision, Role, VisionSpec
from cutline.models.export.quiet import quiet
from cutline.models.families import FAMILIES, AnyFamily
from cutline.models.layerline import LayerLine
from cutline.models.prompt import TEMPLATE
from cutline.models.unreadable import UNREADABLE
from cutline.models.vocabulary import TOKENIZER


@dataclass(frozen=True, slots=True)
class Source:
    """A transformers model read from `path`.

    `companions` maps the names of the files that a bundle holds beside its model to their content.
    """

    path: Path
    family: AnyFamily
    model: Any
    companions: dict[str, bytes]
    stop_tokens: tuple[int, ...]
    image_token: int
    line: LayerLine
    parameters: tuple[int, ...]
    vision: VisionSpec
    decoder: DecoderSpec

    def manifest(self, *, name: str, role: Role, precision: Precision, target: str | None) -> Manifest:
        """The manifest of a bundle of it, before there are files; a drafter is made for the `target` of an identity."""
        return Manifest(
            format=FORMAT,
            name=name,
            role=role,
            precision=precision,
            family=self.family,
            line=self.line,
            parameters=self.parameters,
            vision=self.vision,
            decoder=self.decoder,
            stop_tokens=self.stop_tokens,
            image_token=self.image_token,
            target=target,
            files={},
        )


def read_source(path: Path, *, dtype: torch.dtype | None = None) -> Source:
    """Read the folder `path`; weights as `dtype`, or as they are stored. Raises InputError."""
    for name in ("config.json", TOKENIZER):
        if not (path / name).is_file():
            raise InputError(f"{path} is not a Hugging Face folder that can be exported: it has no {name}")
    companions = {TOKENIZER: (path / TOKENIZER).read_bytes(), TEMPLATE: _template(path)}
    try:
        # Without a word on it transformers asks whoever sits there whether code from the folder may run.
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path / 'config.json'} does not read ({_first_line(error)}); {_taken()}") from None
    family = _family(path, config)
    model = _read_weights(path, dtype)
    text, vision = config.text_config, config.vision_config
    return Source(
        path=path,
        family=family,
        model=model,
        companions=companions,
        stop_tokens=_stop_tokens(path, model),
        image_token=config.image_token_id,
        line=LayerLine(vision=vision.num_hidden_layers, decoder=text.num_hidden_layers),
        parameters=_parameters(model, family),
        vision=VisionSpec(width=vision.hidden_size, heads=vision.num_attention_heads),
        decoder=DecoderSpec(
            width=text.hidden_size,
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            vocabulary=text.vocab_size,
            context=text.max_position_embeddings,
        ),
    )


def _taken() -> str:
    *others, last = (kind for family in FAMILIES for kind in family.kinds)
    return f"supported are {', '.join(others)} and {last}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _read_weights(path: Path, dtype: torch.dtype | None) -> Any:
    try:
        with quiet():
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                path,
                dtype=dtype or "auto",
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,  # the other format is pickle, which runs code
                output_loading_info=True,
            )
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise InputError(f"the weights of {path} do not load ({_first_line(error)})") from None
    model, loading = loaded
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
        except UNREADABLE as error:
            raise InputError(f"the chat template in {file} does not read: {error}") from None
        if said is not None:
            return said.encode()
    raise InputError(f"{path} is not a Hugging Face folder that can be exported: it has no {TEMPLATE}")


def _parameters(model: Any, family: AnyFamily) -> tuple[int, ...]:
    """Weights of every layer on the line, in its order."""
    parts = family.parts
    decoder = model.model.get_submodule(parts.decoder)
    layers = (
        [model.model.get_submodule(name) for name in parts.image],
        *([layer] for layer in model.model.get_submodule(parts.tower)),
        [model.model.get_submodule(name) for name in parts.connector],
        *([layer] for layer in decoder.layers),
        [decoder.norm, model.lm_head],
    )
    return tuple(sum(weight.numel() for module in layer for weight in module.parameters()) for layer in layers)


def _family(path: Path, config: PreTrainedConfig) -> AnyFamily:
    """By the model's kind, from its config and, where the folder has one, its image processor. Raises InputError."""
    kind = next((family for family in FAMILIES if config.model_type in family.kinds), None)
    if kind is None:
        raise InputError(f"{path} holds a model of the kind {config.model_type}; {_taken()}")
    try:
        return kind.of(config, _processor(path))
    except (AttributeError, KeyError, TypeError, msgspec.ValidationError) as error:
        raise InputError(f"the image processor in {path} does not read: {error}") from None
    except ValueError as error:
        raise InputError(f"{path} has {error}") from None


def _processor(path: Path) -> dict[str, Any] | None:
    """The image processor's settings. transformers 5 nests them in the whole processor's, older ones do not."""
    try:
        if (path / "preprocessor_config.json").is_file():
            return msgspec.json.decode((path / "preprocessor_config.json").read_bytes(), type=dict[str, Any])
        if (path / "processor_config.json").is_file():
            whole = msgspec.json.decode((path / "processor_config.json").read_bytes(), type=dict[str, Any])
            return msgspec.convert(whole.get("image_processor"), dict[str, Any] | None)
    except UNREADABLE as error:
        raise InputError(f"the image processor in {path} does not read: {error}") from None
    return None
