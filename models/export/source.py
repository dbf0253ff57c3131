"""Reads a local Hugging Face folder, checks that its model is supported, and derives the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, PreTrainedConfig

from cutline.errors import BundleError, InputError
from cutline.models.bundle import FORMAT, DecoderSpec, Manifest, Precision, Role, VisionSpec
from cutline.models.export.folder import (
    CONFIG,
    GENERATION,
    IMAGES,
    PROCESSOR,
    TOKENS,
    VIDEOS,
    Settings,
    first_line,
    refuse_pointer,
    settings_of,
    template_of,
    tokenizer_of,
)
from cutline.models.export.quiet import quiet
from cutline.models.export.settings import check, check_flat, shown
from cutline.models.families import Family, every_family
from cutline.models.families.layer_state import SharedKeys
from cutline.models.law.penalties import NO_PENALTIES, Penalties
from cutline.models.layerline import LayerLine
from cutline.models.prompt import TEMPLATE
from cutline.models.vocabulary import TOKENIZER, Vocabulary

HEAD_MULTIPLE = 16  # a head's width must be a multiple of it: ONNX Runtime's attention has no others


@dataclass(frozen=True, slots=True)
class SourceModel:
    """A transformers model read from `path`.

    `companions` maps the names of the bundle's other files, such as the tokenizer, to their content.
    """

    path: Path
    family: Family
    model: Any
    companions: dict[str, bytes]
    stop_tokens: tuple[int, ...]
    image_token: int
    line: LayerLine
    parameters: tuple[int, ...]
    vision: VisionSpec
    decoder: DecoderSpec
    penalties: Penalties

    def resized(self, vocabulary: int) -> SourceModel:
        """With a vocabulary of so many rows, as its target has: published models pad theirs to different lengths.

        Rows behind those of the tokenizer's tokens stand for nothing.
        """
        if vocabulary == self.decoder.vocabulary:
            return self
        with quiet():
            self.model.resize_token_embeddings(vocabulary, mean_resizing=False)
        decoder = msgspec.structs.replace(self.decoder, vocabulary=vocabulary)
        return replace(self, decoder=decoder, parameters=_parameters(self.model, self.family))

    def manifest(self, *, name: str, role: Role, precision: Precision, target: str | None) -> Manifest:
        """The manifest of its bundle, with no files yet; `target` is the identity of a drafter's target."""
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
            penalties=self.penalties,
        )


def read_source(path: Path, *, dtype: torch.dtype | None = None) -> SourceModel:
    """Read the folder `path`, with weights as `dtype` or as they are stored. Raises InputError."""
    kind = _kind(path)
    said = {name: settings_of(path / name) or {} for name in (GENERATION, PROCESSOR, IMAGES, TOKENS)}
    for name, settings in said.items():
        check(path, name, settings)
    companions = {TOKENIZER: tokenizer_of(path), TEMPLATE: template_of(path, kind.template, said)}
    config = _config(path, kind)
    family = _family(path, kind, config, said)
    usual = kind.usual_layer(config.get_text_config())
    text, image_token = config.get_text_config(), _image_token(config, family, companions[TOKENIZER])
    if image_token >= (vocabulary := text.vocab_size) + family.unchosen:
        image = f"image_token_id {image_token} in {CONFIG}"
        raise InputError(f"{path} has {image}, and a vocabulary of {vocabulary} tokens")
    _penalties(path, said[GENERATION], (), vocabulary)  # refused before weights are read
    model = read_weights(AutoModelForImageTextToText, path, dtype)
    tower = family.tower_sizes(config)
    generation = model.generation_config.to_dict()  # from config.json if generation_config.json is missing
    check(path, GENERATION, generation)
    stops = _stop_tokens(path, generation)
    return SourceModel(
        path=path,
        family=family,
        model=model,
        companions=companions,
        stop_tokens=stops,
        image_token=image_token,
        line=_line(family, tower.layers, text.num_hidden_layers),
        parameters=_parameters(model, family),
        vision=VisionSpec(width=tower.width, heads=tower.heads),
        decoder=DecoderSpec(
            width=text.hidden_size,
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            kv_heads=getattr(usual, "num_key_value_heads", None) or text.num_attention_heads,
            head_dim=_head(usual),
            vocabulary=text.vocab_size,
            context=text.max_position_embeddings,
        ),
        penalties=_penalties(path, generation, stops, text.vocab_size),
    )


def _line(family: Family, tower: int, decoder: int) -> LayerLine:
    """A line of so many layers of the tower and the decoder. Who reads what a layer keeps, is never parted from it."""
    keeps = map(family.keeps, range(decoder))
    read = [kept.layer for kept in keeps if isinstance(kept, SharedKeys)]
    return LayerLine(vision=tower, decoder=decoder, deepest=min(read, default=None))


def _families() -> tuple[type[Family], ...]:
    """All families that are installed. Raises InputError for one that does not load."""
    try:
        return every_family()
    except ValueError as error:
        raise InputError(str(error)) from error


def _taken() -> str:
    *others, last = (kind for family in _families() for kind in family.kinds)
    return f"supported are {', '.join(others)} and {last}"


def _nearest(name: str) -> str:
    """A hint at the supported kind whose name is like `name`, if one is."""
    near = get_close_matches(name, [kind for family in _families() for kind in family.kinds], n=1)
    return f"; the nearest is {near[0]}" if near else ""


def _kind(path: Path) -> type[Family]:
    """The family that config.json names. Raises InputError for an unsupported model, before anything else is read."""
    said = settings_of(path / CONFIG)
    if said is None:
        raise InputError(f"{path} is not a Hugging Face folder that can be exported: it has no {CONFIG}{_hint(path)}")
    name, classes = said.get("model_type"), said.get("architectures", [])
    kind = next((family for family in _families() if name in family.kinds), None)
    for family in _families():
        if (why := family.declined.get(str(name))) is not None:
            raise InputError(f"{path} holds a model of the kind {name}, which does not run: {why}; {_taken()}")
    if kind is None:
        named = shown(classes) if name is None and classes else name
        hint = "; export it with --role encoder" if name in ("clip", "siglip") else _nearest(str(name))
        raise InputError(f"{path} holds a model of the kind {named}; {_taken()}{hint}")
    if classes and not (isinstance(classes, list) and set(map(str, classes)) <= set(kind.answering)):
        supported = " or ".join(kind.answering)
        raise InputError(f"{path} has architectures {shown(classes)} in {CONFIG}; supported: {supported}")
    check(path, CONFIG, said)
    check_flat(path, said)
    for part in ("text_config", "vision_config"):
        inside = said.get(part, {})
        if not isinstance(inside, dict):
            raise InputError(f"{path} has {part} {shown(inside)} in {CONFIG}, where an object is supported")
        check(path, f"{CONFIG}, {part}", inside)
    return kind


def _hint(path: Path) -> str:
    """A hint for a folder without a config.json: a class that another of its files names."""
    for name in (PROCESSOR, IMAGES, TOKENS):
        said = settings_of(path / name) or {}
        for key in ("processor_class", "image_processor_type", "tokenizer_class"):
            if key in said:
                return f", and {name} says {key} {shown(said[key])}; {_taken()}"
    return f"; {_taken()}"


def _config(path: Path, kind: type[Family]) -> PreTrainedConfig:
    """The config as transformers reads it, with defaults for missing settings. Raises InputError."""
    try:
        with quiet():
            # By default transformers would ask in the terminal whether code from the folder may run.
            config: PreTrainedConfig = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            text = config.get_text_config()
            check(path, f"{CONFIG}, text_config", text.to_dict())
            check(path, f"{CONFIG}, vision_config", config.vision_config.to_dict())
    except InputError:
        raise
    except Exception as error:  # a config may have any value anywhere, and transformers may raise anything on it
        raise InputError(f"{path / CONFIG} does not read ({first_line(error)})") from None
    if (head := _head(kind.usual_layer(text))) % HEAD_MULTIPLE:
        sizes = f"hidden_size {text.hidden_size}, num_attention_heads {text.num_attention_heads}"
        raise InputError(f"{path} has head_dim {head} ({sizes}) in {CONFIG}; supported: a multiple of {HEAD_MULTIPLE}")
    return config


def _image_token(config: PreTrainedConfig, family: Family, tokenizer: bytes) -> int:
    """The token that stands for a row of an image: the config's, else the family's. Raises InputError."""
    said = getattr(config, "image_token_id", None)
    token = family.image_token or family.image_marker
    try:
        found = Vocabulary.read(tokenizer).added.get(token) if said is None else said
    except BundleError as error:
        raise InputError(str(error)) from None
    if found is None:
        raise InputError(f"{TOKENIZER} has no token {token}, which stands for an image")
    return int(found)


def _head(text: Any) -> int:
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def read_weights(kind: Any, path: Path, dtype: torch.dtype | None) -> Any:
    """The model in a folder, of one of transformers' auto classes, with all its weights. Raises InputError."""
    for file in path.glob("*.safetensors"):
        refuse_pointer(file)
    try:
        with quiet():
            loaded: Any = kind.from_pretrained(
                path,
                dtype=dtype or "auto",
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,  # the other format is pickle, which runs code
                output_loading_info=True,
            )
    except Exception as error:  # transformers may raise anything on weights of other shapes, or on broken files
        raise InputError(f"the weights of {path} do not load ({first_line(error)})") from None
    model, loading = loaded
    # transformers fills missing weights with random numbers, and only warns.
    if missing := sorted(loading["missing_keys"]):
        raise InputError(f"the weights of {path} lack {len(missing)} tensors, {missing[0]} among them")
    return model.eval()


def _stop_tokens(path: Path, generation: Settings) -> tuple[int, ...]:
    """The stop tokens of generation_config.json, or of config.json without one. Raises InputError."""
    ends = generation.get("eos_token_id")
    listed = ends if isinstance(ends, list) else [ends]
    if not listed or not all(isinstance(token, int) and token >= 0 for token in listed):
        named = f"{CONFIG} and {GENERATION} in {path}"
        raise InputError(f"{named} have the eos_token_id {shown(ends)}, where a token or several are needed")
    return tuple(sorted(set(listed)))


def _penalties(path: Path, generation: Settings, stops: tuple[int, ...], vocabulary: int) -> Penalties:
    """The penalties of generation_config.json. As in transformers, a stop token cannot be a forbidden word.

    Raises InputError.
    """
    fields: dict[str, Any] = {}
    min_new = generation.get("min_new_tokens")
    for name in Penalties.__struct_fields__:
        # As in transformers, `min_new_tokens` overrides `min_length`.
        value = None if name == "min_length" and min_new is not None else generation.get(name)
        if value is None:
            continue
        try:
            read = getattr(msgspec.convert({name: value}, Penalties), name)
        except msgspec.ValidationError as error:
            raise InputError(
                f"{path} has {name} {shown(value)} in {GENERATION}, which does not read ({error})"
            ) from None
        if any(token >= vocabulary for token in _tokens_in(read)):
            raise InputError(
                f"{path} has {name} {shown(value)} in {GENERATION}, and a vocabulary of {vocabulary} tokens"
            )
        fields[name] = read
    words = tuple(word for word in fields.pop("bad_words_ids", ()) if word not in {(stop,) for stop in stops})
    penalties = Penalties(**fields, bad_words_ids=words)
    return NO_PENALTIES if penalties == NO_PENALTIES else penalties  # a manifest omits that very object


def _tokens_in(setting: object) -> Iterator[int]:
    """The tokens in a setting, a nested tuple of ids; a number has none."""
    for item in setting if isinstance(setting, tuple) else ():
        yield from _tokens_in(item) if isinstance(item, tuple) else (item,)


def _parameters(model: Any, family: Family) -> tuple[int, ...]:
    """The number of weights of every layer on the line, in order."""
    made = family.parts.modules(model)
    tower = [family.tower_weights(index, layer) for index, layer in enumerate(made.tower)]
    counted = [_weights(made.image), *tower, _weights(made.connector)]
    given = _weights(made.giving[1:]) // len(made.layers)  # of which each layer has a share
    return (*counted, *(family.weights(layer) + given for layer in made.layers), _weights(made.last))


def _weights(modules: Sequence[Any]) -> int:
    return sum(weight.numel() for module in modules for weight in module.parameters())


def _family(path: Path, kind: type[Family], config: PreTrainedConfig, said: dict[str, Settings]) -> Family:
    """The model's family, from its config and its image processor. Raises InputError."""
    more = said[TOKENS].get("extra_special_tokens")
    named = {**(more if isinstance(more, dict) else {}), **said[TOKENS]}
    for name, token in kind.named.items():
        given = named.get(name, token)
        if (given.get("content") if isinstance(given, dict) else given) != token:
            raise InputError(f"{path} has {name} {shown(given)} in {TOKENS}; supported: {token}")
    processor = _processor(path, kind)
    try:
        videos = said[PROCESSOR].get("video_processor") or settings_of(path / VIDEOS)
        return kind.of(config, {**said[PROCESSOR], **processor, "video_processor": videos})
    except ValueError as error:
        raise InputError(f"{path} has {error}") from None
    except (ArithmeticError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{path / CONFIG} or its image processor does not read ({error!r})") from None


def _processor(path: Path, kind: type[Family]) -> Settings:
    """All settings of the folder's image processor, with the defaults of its class. Raises InputError."""
    said = (settings_of(path / PROCESSOR) or {}).get("image_processor") or settings_of(path / IMAGES)
    if said is None:
        raise InputError(f"{path} has no image processor: neither {IMAGES} nor an image_processor in {PROCESSOR}")
    if not isinstance(said, dict):
        raise InputError(f"{path} has image_processor {shown(said)} in {PROCESSOR}, where an object is supported")
    if kind.processor_defaults is not None:
        return _read_processor(path, kind, kind.processor_defaults, said)
    try:
        with quiet():
            made = AutoImageProcessor.from_pretrained(
                path, backend="pil", local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # as for a config
        named = f"image_processor_type {shown(said.get('image_processor_type'))}"
        raise InputError(f"the image processor in {path} does not read: {named} ({first_line(error)})") from None
    _check_processor(path, kind, type(made).__name__.removesuffix("Pil"))
    # For a null value the default of the class counts.
    settings: Settings = {
        name: getattr(type(made), name, None) if value is None else value for name, value in made.to_dict().items()
    }
    if not settings.get("do_resize", True):
        raise InputError(f"{path} has do_resize False in {IMAGES}; supported: True")
    return _checked(path, kind, settings)


def _read_processor(path: Path, kind: type[Family], defaults: Mapping[str, Any], said: Settings) -> Settings:
    """As `_processor`, of one that transformers cannot make here: what the folder says, else the `defaults`."""
    _check_processor(path, kind, str(said.get("image_processor_type")).removesuffix("Fast"))
    given = {name: value for name, value in said.items() if name in defaults and value is not None}
    return _checked(path, kind, {**defaults, **given})


def _check_processor(path: Path, kind: type[Family], name: str) -> None:
    if name not in kind.processors:
        raise InputError(f"{path} has an image_processor_type {name!r}; supported: {' or '.join(kind.processors)}")


def _checked(path: Path, kind: type[Family], settings: Settings) -> Settings:
    """The `settings` of an image processor that are supported. Raises InputError."""
    check(path, IMAGES, settings)
    if (resample := settings["resample"]) != kind.resample:
        value = int(resample) if isinstance(resample, int) else resample  # one of Pillow's enum
        raise InputError(f"{path} has resample {shown(value)} in {IMAGES}; supported: {int(kind.resample)}")
    if (said := settings["do_normalize"]) is not None and bool(said) != kind.normalises:
        raise InputError(f"{path} has do_normalize {shown(said)} in {IMAGES}; supported: {kind.normalises}")
    return settings
