"""Whole models from published configuration files: reduced widths, seeded weights, and what else a set lacks."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForImageTextToText

from cutline.models.export.quiet import quiet
from cutline.models.families import FAMILIES, git, internvl, smolvlm
from cutline.models.families.gemma import gemma3, tower
from cutline.models.families.gemma.gemma3 import Gemma3
from cutline.models.families.gemma.gemma4 import Gemma4
from cutline.models.families.gemma.paligemma import PaliGemma
from cutline.models.families.git import Git
from cutline.models.families.internvl import InternVL
from cutline.models.families.lfm2.lfm2vl import Lfm2VL
from cutline.models.families.llava_onevision import LlavaOnevision
from cutline.models.families.minicpm import minicpmv
from cutline.models.families.minicpm.minicpmv import MiniCPMV
from cutline.models.families.mllama import mllama
from cutline.models.families.mllama.mllama import Mllama
from cutline.models.families.qwen import qwenvl
from cutline.models.families.qwen.qwenvl import QwenVL
from cutline.models.families.smolvlm import SmolVLM
from cutline.testing.models.random_models import PLAIN_TEMPLATE, Tokens, seeded, write_text
from cutline.testing.models.templates import GEMMA4_TEMPLATE, GEMMA_TEMPLATE, INTERNVL_TEMPLATE, QWEN_TEMPLATE

Files = dict[str, Any]
HEAD = 16  # a head's width
WIDTH = 4 * HEAD  # of a decoder
KINDS = {kind: family for family in FAMILIES for kind in family.kinds}
GENERATED = "generation_config.json"
QWEN_IMAGES = {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 12845056}
_QWEN_ROPE = {"type": "mrope", "mrope_section": [16, 24, 24]}
_LFM2_IMAGES = {"image_processor_type": "Lfm2VlImageProcessorFast", "resample": 3}
_MINICPMV_IMAGES = {
    "image_processor_type": "MiniCPMV4_6ImageProcessor",
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}
_DELTA = {"head_dim": 2 * HEAD, "layer_types": ["linear_attention", "full_attention"]} | {
    f"linear_{name}": size
    for name, size in {"num_key_heads": 2, "num_value_heads": 4, "key_head_dim": 16, "value_head_dim": 16}.items()
}
_SQUARE = {"hidden_size": 2048, "num_attention_heads": 16}


@dataclass(frozen=True, slots=True)
class Completion:
    """What a set of a family lacks: a `config` where there is none, an image processor, and a template.

    `reduce` makes the config small. The template writes the tokens `written`, and ends turns with the last of them;
    `markers` are tokens by the setting of the config that has their id, `fixed` ones have theirs by themselves.
    """

    config: Files
    images: Callable[[Files], Files]
    reduce: Callable[[Files], Files]
    template: str | None
    markers: Mapping[str, str]
    written: tuple[str, ...]
    fixed: Mapping[str, int] = field(default_factory=dict)
    tokens: Tokens = "bytes"


def _smolvlm_images(config: Files) -> Files:
    tile = config.get("vision_config", {}).get("image_size", 224)
    return {
        "image_processor_type": "SmolVLMImageProcessor",
        "do_image_splitting": True,
        "max_image_size": {"longest_edge": tile},
        "size": {"longest_edge": 2 * tile},
    }


def _reduced_smolvlm(config: Files) -> Files:
    text, vision = dict(config.get("text_config", {})), dict(config.get("vision_config", {}))
    heads = text.get("num_attention_heads", 32)
    heads = max(1, min(4, heads // (text.get("num_key_value_heads") or heads)))
    text |= {"hidden_size": heads * HEAD, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": HEAD}
    text |= {"num_attention_heads": heads, "num_key_value_heads": 1}
    vision |= {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    return config | {"text_config": text, "vision_config": vision}


def _qwen_images(config: Files) -> Files:
    usual = 16 if config.get("model_type") in ("qwen3_vl", "qwen3_5") else 14
    return QWEN_IMAGES | {"patch_size": (config.get("vision_config") or {}).get("patch_size", usual)}


def _reduced_qwen(config: Files) -> Files:
    # Older folders have the decoder's settings at the top, which transformers does not read of a Qwen3-VL.
    nested = isinstance(config.get("text_config"), dict) or config.get("model_type") in ("qwen3_vl", "qwen3_5")
    text = _decoder(config.get("text_config", {}) if nested else config)
    if nested and not {"rope_scaling", "rope_parameters"} & text.keys():
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]}
    for name in ("rope_scaling", "rope_parameters"):
        if isinstance(text.get(name), dict) and "mrope_section" in text[name]:
            text[name] = text[name] | {"mrope_section": [2, 3, 3]}
    if config.get("model_type") == "qwen3_5":
        text |= _DELTA
        text["rope_parameters"] = text.get("rope_parameters", {}) | {"rope_type": "default", "mrope_section": [2, 1, 1]}
    vision = dict(config.get("vision_config") or {}) | {"depth": 3, "num_heads": 2}
    if config.get("model_type") == "qwen2_vl":  # whose tower has another word for its width
        vision |= {"embed_dim": 32, "hidden_size": WIDTH}
    else:
        vision |= {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": WIDTH}
        vision |= {"fullatt_block_indexes": [1], "deepstack_visual_indexes": [0, 2]}
    return (config | {"text_config": text} if nested else text) | {"vision_config": vision}


def _decoder(said: Files, *, layers: int = 2) -> Files:
    sizes = {"hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": layers, "num_attention_heads": 4}
    return said | sizes | {"num_key_value_heads": 2, "head_dim": HEAD}


def _tower(said: Files) -> Files:
    return said | {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def _internvl_images(config: Files) -> Files:
    side = config.get("vision_config", {}).get("image_size", 448)
    side = side[0] if isinstance(side, list) else side
    return {"image_processor_type": "GotOcr2ImageProcessor", "size": {"height": side, "width": side}}


def _reduced_internvl(config: Files) -> Files:
    text = _decoder(config.get("text_config", {}))
    return config | {"text_config": text, "vision_config": _tower(config.get("vision_config", {}))}


def _gemma_images(config: Files) -> Files:
    side = config.get("vision_config", {}).get("image_size", 224)
    return {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": side, "width": side}}


def _reduced_gemma(config: Files) -> Files:
    text = _decoder(config.get("text_config", {}), layers=3) | {"sliding_window": 40}
    text["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
    return config | {"text_config": text, "vision_config": _tower(config.get("vision_config", {}))}


def _gemma4_images(config: Files) -> Files:
    del config
    return {"image_processor_type": "Gemma4ImageProcessor", "do_normalize": False, "resample": 3}


def _reduced_gemma4(config: Files) -> Files:
    """As many layers that share keys as there are kinds of layers; and a small ear, which nobody listens with."""
    said = config.get("text_config", {})
    text = _decoder(said, layers=6) | {"sliding_window": 40, "global_head_dim": 2 * HEAD}
    text["layer_types"] = ["sliding_attention", "full_attention"] * 3
    text |= {"num_kv_shared_layers": min(2, said.get("num_kv_shared_layers", 0)), "num_global_key_value_heads": 1}
    text |= {"hidden_size_per_layer_input": min(HEAD, said.get("hidden_size_per_layer_input", 0))}
    if said.get("enable_moe_block"):
        text |= {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}
    vision = _tower(config.get("vision_config", {})) | {"num_key_value_heads": 2, "head_dim": HEAD}
    made = config | {"text_config": text, "vision_config": vision}
    if config.get("audio_config"):
        ear = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "output_proj_dims": 32}
        made["audio_config"] = config["audio_config"] | ear
    return made


def _paligemma_images(config: Files) -> Files:
    return _gemma_images(config) | {"image_processor_type": "SiglipImageProcessor", "resample": 3}


def _reduced_paligemma(config: Files) -> Files:
    text = _decoder(config.get("text_config", {}))
    vision = _tower(config.get("vision_config", {})) | {"projection_dim": WIDTH}
    return config | {"text_config": text, "vision_config": vision, "hidden_size": WIDTH, "projection_dim": WIDTH}


def _llava_images(config: Files) -> Files:
    side = config.get("vision_config", {}).get("image_size", 384)
    pins = config.get("image_grid_pinpoints") or [[side * down, side * across] for down in (1, 2) for across in (1, 2)]
    square = {"height": side, "width": side}
    return {"image_processor_type": "LlavaOnevisionImageProcessor", "size": square, "image_grid_pinpoints": pins}


def _git_images(config: Files) -> Files:
    side = config.get("vision_config", {}).get("image_size", 224)
    sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    return {"image_processor_type": "CLIPImageProcessor", **sizes}


def _reduced_git(config: Files) -> Files:
    sizes = {"hidden_size": 4 * HEAD, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    return config | sizes | {"vision_config": _tower(config.get("vision_config", {}))}


def _reduced_lfm2(config: Files) -> Files:
    text = _decoder(config.get("text_config", {})) | {"layer_types": ["conv", "full_attention"]}
    text |= {"block_ff_dim": 96, "block_multiple_of": 32}
    vision = _tower(config.get("vision_config", {})) | {"vision_use_head": False}
    return config | {"text_config": text, "vision_config": vision, "projector_hidden_size": 48}


def _mllama_images(config: Files) -> Files:
    vision = config.get("vision_config", {})
    side = vision.get("image_size", 448)
    square, most = {"height": side, "width": side}, vision.get("max_num_tiles", 4)
    return {"image_processor_type": "MllamaImageProcessor", "size": square, "max_image_tiles": most}


def _reduced_mllama(config: Files) -> Files:
    text = _decoder(config.get("text_config", {}), layers=4) | {"cross_attention_layers": [1, 3]}
    tower: Files = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_global_layers": 1}
    tower |= {"attention_heads": 2, "intermediate_layers_indices": [0], "vision_output_dim": 64, "patch_size": 112}
    return config | {"text_config": text, "vision_config": config.get("vision_config", {}) | tower}


def _reduced_minicpmv(config: Files) -> Files:
    text = _decoder(config.get("text_config", {})) | _DELTA | {"model_type": "qwen3_5_text"}
    vision = _tower(config.get("vision_config", {}))
    return config | {"text_config": text, "vision_config": vision, "insert_layer_id": 0}


_SMOLVLM = Completion(
    {
        "image_token_id": 49190,
        "scale_factor": 4,
        "text_config": {"vocab_size": 49280, "pad_token_id": 2},
        "vision_config": {"image_size": 512, "patch_size": 16},
    },
    _smolvlm_images,
    _reduced_smolvlm,
    PLAIN_TEMPLATE,
    {"image_token_id": smolvlm.IMAGE},
    ("<|im_start|>", smolvlm.FAKE, "<end_of_utterance>"),
)
_QWEN = Completion(
    {"rope_scaling": _QWEN_ROPE, "eos_token_id": 151645, **_SQUARE},
    _qwen_images,
    _reduced_qwen,
    QWEN_TEMPLATE,
    {"image_token_id": qwenvl.IMAGE, "vision_start_token_id": qwenvl.START, "vision_end_token_id": qwenvl.END},
    ("<|im_start|>", "<|im_end|>"),
)
_INTERNVL = Completion(
    {"image_token_id": 151667, "text_config": {"model_type": "qwen2", "eos_token_id": 151645}},
    _internvl_images,
    _reduced_internvl,
    INTERNVL_TEMPLATE,
    {"image_token_id": internvl.IMAGE},
    (internvl.START, internvl.END, "<|im_start|>", "<|im_end|>"),
)
_GEMMA = Completion(
    {"eos_token_id": [1, 106], "vision_config": {"image_size": 224, "patch_size": 14}, "mm_tokens_per_image": 256},
    _gemma_images,
    _reduced_gemma,
    GEMMA_TEMPLATE,
    {"image_token_id": gemma3.IMAGE, "boi_token_id": gemma3.START, "eoi_token_id": gemma3.END},
    ("<bos>", "<start_of_turn>", "<end_of_turn>"),
    tokens="pieces",
)
_GEMMA4 = Completion(
    {"eos_token_id": [1, 106], "text_config": {"vocab_size": 262144}, "audio_config": None},
    _gemma4_images,
    _reduced_gemma4,
    GEMMA4_TEMPLATE,
    {"image_token_id": tower.IMAGE, "boi_token_id": tower.START, "eoi_token_id": tower.END},
    ("<bos>", "<|turn>", "<turn|>"),
    tokens="pieces",
)
_PALIGEMMA = Completion(
    {"eos_token_id": 1, "vision_config": {"image_size": 224, "patch_size": 14}, "text_config": {"vocab_size": 257216}},
    _paligemma_images,
    _reduced_paligemma,
    None,
    {"image_token_id": "<image>"},
    ("<bos>", "<eos>"),
    tokens="pieces",
)
_LLAVA_ONEVISION = Completion(
    {
        "image_token_index": 151646,
        "text_config": {"model_type": "qwen2", "vocab_size": 152000, "eos_token_id": 151645},
        "vision_config": {"model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14},
        "image_grid_pinpoints": [[56, 56], [56, 112], [112, 56], [112, 112]],
    },
    _llava_images,
    _reduced_internvl,
    INTERNVL_TEMPLATE.replace("<IMG_CONTEXT>", "<image>"),
    {"image_token_id": "<image>"},
    ("<|im_start|>", "<|im_end|>"),
)
_GIT = Completion(
    {"eos_token_id": 102, "vision_config": {"image_size": 224, "patch_size": 16}},
    _git_images,
    _reduced_git,
    None,
    {},
    ("[SEP]",),
    fixed={"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, git.GAP: 103},
    tokens="words",
)
_LFM2_VL = Completion(
    {
        "image_token_id": 396,
        "text_config": {"model_type": "lfm2", "eos_token_id": 7},
        "vision_config": {"model_type": "siglip2_vision_model"},
    },
    lambda config: _LFM2_IMAGES,
    _reduced_lfm2,
    INTERNVL_TEMPLATE.replace("<IMG_CONTEXT>", "<image>"),
    {"image_token_id": "<image>"},
    ("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>", "<|im_start|>", "<|im_end|>"),
)
_MLLAMA = Completion(
    {"image_token_index": 128256, "text_config": {"eos_token_id": 128009}, "vision_config": {"image_size": 560}},
    _mllama_images,
    _reduced_mllama,
    INTERNVL_TEMPLATE.replace("<IMG_CONTEXT>", mllama.IMAGE),
    {"image_token_id": mllama.IMAGE},
    ("<|im_start|>", "<|im_end|>"),
)
_MINICPMV = Completion(
    {"image_token_id": 248056, "eos_token_id": 248046, "vision_config": {"image_size": 980, "patch_size": 14}},
    lambda config: _MINICPMV_IMAGES,
    _reduced_minicpmv,
    INTERNVL_TEMPLATE.replace("<IMG_CONTEXT>", minicpmv.IMAGE),
    {"image_token_id": minicpmv.IMAGE},
    (*minicpmv.MiniCPMV.markers[1:], "<|im_start|>", "<|im_end|>"),
)
COMPLETIONS: Mapping[type, Completion] = {
    SmolVLM: _SMOLVLM,
    QwenVL: _QWEN,
    InternVL: _INTERNVL,
    Gemma3: _GEMMA,
    Gemma4: _GEMMA4,
    PaliGemma: _PALIGEMMA,
    LlavaOnevision: _LLAVA_ONEVISION,
    Git: _GIT,
    Lfm2VL: _LFM2_VL,
    Mllama: _MLLAMA,
    MiniCPMV: _MINICPMV,
}


def completion_of(kind: str) -> Completion:
    """What sets of transformers' `kind` are completed with."""
    return next(COMPLETIONS[base] for base in KINDS[kind].__mro__ if base in COMPLETIONS)


def filled(kind: str, files: Files) -> Files:
    """The files of a set, with what they lack from a whole model of the kind, and its config reduced."""
    completion, files = completion_of(kind), dict(files)
    base: Files = {"model_type": kind, "architectures": [KINDS[kind].answering[0]]}
    config = dict(files.get("config.json", base))
    if config == base:
        config |= completion.config
        side = files.get("preprocessor_config.json", {}).get("size", {})
        square = side.get("height", side.get("shortest_edge")) if isinstance(side, dict) else None
        if completion.tokens != "bytes" and square:  # whose tower sees what is given
            config["vision_config"] = config["vision_config"] | {"image_size": square}
    has_processor = "image_processor" in files.get("processor_config.json", {})
    if "preprocessor_config.json" not in files and not has_processor:
        files["preprocessor_config.json"] = completion.images(config)
    text = config.get("text_config")
    if isinstance(text, dict) and "eos_token_id" not in config:
        files.setdefault(GENERATED, {"eos_token_id": text.get("eos_token_id", 2)})
    files["config.json"] = completion.reduce(config)
    return files


def write_folder(folder: Path, kind: str, files: Files) -> None:
    """A set of a kind that runs, as a folder with weights, a tokenizer and a template."""
    for name, said in files.items():
        (folder / name).write_text(json.dumps(said))
    completion = completion_of(kind)
    with quiet():
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        model = seeded(AutoModelForImageTextToText.from_config, config)
        with tempfile.TemporaryDirectory() as place:
            model.save_pretrained(place)
            for file in Path(place).glob("*.safetensors"):
                (folder / file.name).write_bytes(file.read_bytes())
    ends = files.get(GENERATED, {}).get("eos_token_id") or model.generation_config.eos_token_id or 2
    special = _special(files, config, ends if isinstance(ends, list) else [ends], completion)
    size, template = config.get_text_config().vocab_size, completion.template
    write_text(folder, special, size, template=template, tokens=completion.tokens)


def _special(files: Files, config: Any, ends: list[int], completion: Completion) -> dict[str, int]:
    """The special tokens that the files name, and those that the template writes."""
    listed = files.get("tokenizer_config.json", {}).get("added_tokens_decoder", {})
    found = {one["content"]: int(place) for place, one in listed.items() if place.isdigit() and isinstance(one, dict)}
    wanted = {**{token: getattr(config, name) for name, token in completion.markers.items()}, **completion.fixed}
    taken = {place: content for content, place in (found | wanted).items()}
    names = iter([completion.written[-1], *(f"<end{number}>" for number in range(9))])
    for place in ends:
        if place not in taken:
            taken[place] = next(name for name in names if name not in taken.values())
    for name in completion.written:
        if name not in taken.values():
            taken[next(place for place in range(3, 99) if place not in taken)] = name
    return {content: place for place, content in taken.items()}
