"""Folders as people have them: by the keys of published configuration files, reduced, with seeded weights.

The facts are those of HuggingFaceTB's SmolVLM and Idefics3 folders, of Qwen's Qwen2.5-VL, and of copies and fine-tunes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cutline.bench.published import outcome
from cutline.bench.published_models import QWEN_IMAGES, filled, write_folder
from cutline.errors import InputError
from cutline.models.export.source import read_source

Files = dict[str, Any]

QWEN = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "bos_token_id": 251,
    "eos_token_id": 245,
    "image_token_id": 255,
    "video_token_id": 256,
    "vision_start_token_id": 252,
    "vision_end_token_id": 253,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "max_position_embeddings": 4096,
    "max_window_layers": 70,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vision_config": {"hidden_size": 1280, "in_chans": 3, "model_type": "qwen2_5_vl", "spatial_patch_size": 14},
    "vocab_size": 400,
}
QWEN_GENERATION = {"do_sample": True, "eos_token_id": [245, 243], "repetition_penalty": 1.05, "temperature": 1e-06}
QWEN_NULLS = {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "size": {"shortest_edge": 3136, "longest_edge": 401408},
    **dict.fromkeys(("min_pixels", "max_pixels", "crop_size", "pad_size", "device", "data_format", "disable_grouping")),
}
# Without <global-img>, and with tiles that patches of 14 pixels do not fill: the larger SmolVLM, whose tiles have 384.
SMOLVLM: Files = {
    "architectures": ["Idefics3ForConditionalGeneration"],
    "image_seq_len": 81,
    "image_token_id": 153,
    "model_type": "idefics3",
    "pad_token_id": 2,
    "scale_factor": 3,
    "text_config": {
        "_flash_attn_2_enabled": True,
        "architectures": ["VLlama3ForCausalLM"],
        "head_dim": 64,
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "neftune_noise_alpha": 0.0,
        "pad_token_id": 2,
        "repetition_penalty": 1.0,
        "top_k": 50,
        "vocab_size": 400,
    },
    "vision_config": {"image_size": 90, "patch_size": 14, "use_base_siglip": True},
}
SMOLVLM_IMAGES = {
    "do_convert_rgb": True,
    "do_image_splitting": True,
    "do_pad": True,
    "image_processor_type": "Idefics3ImageProcessor",
    "max_image_size": {"longest_edge": 90},
    "resample": 1,
    "size": {"longest_edge": 180},
}


# As in Llama 3.1, which Idefics3 was made of, and others; of contexts so short that all that they change shows.
ROTATIONS: Files = {
    "linear": {"factor": 4.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
}


def files(config: Files, images: Files, **others: Files) -> Files:
    named = {f"{name}.json": said for name, said in others.items()}
    return {"config.json": config, "preprocessor_config.json": images, **named}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("qwen2_5_vl", files(QWEN, QWEN_IMAGES, generation_config=QWEN_GENERATION)),
        ("qwen2_5_vl", files(QWEN, QWEN_NULLS, generation_config={"no_repeat_ngram_size": 2, "eos_token_id": 245})),
        ("idefics3", files(SMOLVLM, SMOLVLM_IMAGES, processor_config={"image_seq_len": 4})),
    ],
    ids=["repetition penalty", "nulls", "no <global-img>"],
)
def test_a_folder_answers_as_transformers_does_from_it(kind: str, said: Files) -> None:
    """With its own generation config: the pixels, and the tokens of a worker, alone and with drafts."""
    found = outcome("one", kind, said, graphs=False)
    assert found.kind == "same", found.said


def turned(kind: str, **others: Any) -> Files:
    """A SmolVLM whose decoder turns by a rope_type of some `kind`, and which has a penalty."""
    text: Files = {
        **SMOLVLM["text_config"],
        "rope_scaling": {"rope_type": kind, **others},
        "max_position_embeddings": 512,
    }
    generation = {"eos_token_id": 2, "repetition_penalty": 1.2}
    return files(SMOLVLM | {"text_config": text}, SMOLVLM_IMAGES, generation_config=generation)


@pytest.mark.parametrize("kind", ROTATIONS)
def test_a_worker_turns_by_every_rotation_that_depends_on_the_position_alone(kind: str) -> None:
    found = outcome("one", "idefics3", turned(kind, **ROTATIONS[kind]), graphs=False)
    assert found.kind == "same", found.said


def test_a_device_answers_so_at_every_cut() -> None:
    """A drafter's graphs, and those of a target before each of its cuts: with the model's own rotation and penalty."""
    found = outcome("one", "idefics3", turned("llama3", **ROTATIONS["llama3"]), graphs=True)
    assert found.kind == "same", found.said


def qwen(**changes: Any) -> Files:
    return files(QWEN | changes, QWEN_IMAGES)


def seen(**changes: Any) -> Files:
    return files(QWEN, QWEN_IMAGES | changes)


def generating(**changes: Any) -> Files:
    return files(QWEN, QWEN_IMAGES, generation_config=QWEN_GENERATION | changes)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (qwen(quantization_config={"quant_method": "awq", "bits": 4}), "quantization_config .*'awq'"),
        (qwen(quantization_config={"quant_method": "bitsandbytes"}), "quantization_config .*'bitsandbytes'"),
        (qwen(quantization_config={"quant_method": "gptq", "bits": 4}), "quantization_config .*'gptq'"),
        (qwen(quantization_config={"quant_method": "nothing"}), "quantization_config .*'nothing'"),
        (qwen(quantization={"bits": 4}), "quantization .*4"),
        (qwen(architectures=["QWenVLChatModel"]), r"architectures \['QWenVLChatModel'\]"),
        (qwen(rope_scaling={"type": "default"}), "mrope_section None"),
        (qwen(rope_scaling={"type": "yarn", "factor": 4.0, "mrope_section": [2, 3, 3]}), "rope_type 'yarn'"),
        (qwen(use_sliding_window=True, max_window_layers=1), "layer_types 'sliding_attention'"),
        (seen(resample=1), "resample 1 .*supported: 3"),
        (seen(resample="nearest"), "resample 'nearest' .*supported: 3"),
        (seen(resample=[3]), r"resample \[3\] .*supported: 3"),
        (seen(do_normalize=False), "do_normalize False"),
        (seen(do_rescale=False), "do_rescale False"),
        (seen(do_resize=False), "do_resize False"),
        (seen(rescale_factor=1 / 127.5), "rescale_factor 0.0078"),
        (seen(max_pixels=10**9), "size .*1000000000"),
        (seen(patch_size=16), "patch_size 16"),
        (seen(image_processor_type="Qwen2_5_VLImageProcessor"), "image_processor_type 'Qwen2_5_VLImageProcessor'"),
        (seen(image_processor_type="CLIPImageProcessor"), "image_processor_type 'CLIPImageProcessor'"),
        (generating(num_beams=4), "num_beams 4"),
        (generating(sequence_bias=[[[1], 2.0]]), "sequence_bias"),
        (generating(stop_strings=["."]), "stop_strings"),
        (generating(repetition_penalty="much"), "repetition_penalty 'much'"),
        (files(SMOLVLM, SMOLVLM_IMAGES | {"size": {"longest_edge": 5000}}), "longest_edge.*5000"),
        (files(SMOLVLM, SMOLVLM_IMAGES | {"max_image_size": {"longest_edge": 98}}), "max_image_size 98"),
        (files(SMOLVLM, SMOLVLM_IMAGES, processor_config={"image_seq_len": 169}), "image_seq_len 169"),
        (files(SMOLVLM, SMOLVLM_IMAGES, tokenizer_config={"fake_image_token": "<x>"}), "fake_image_token '<x>'"),
        (files(SMOLVLM | {"scale_factor": 4}, SMOLVLM_IMAGES), "scale_factor 4"),
        (turned("dynamic", factor=2.0), "rope_type 'dynamic' .*supported: default, linear, llama3, yarn"),
        (turned("longrope", short_factor=[1.0] * 8, long_factor=[2.0] * 8, factor=4.0), "rope_type 'longrope'"),
    ],
)
def test_what_does_not_run_is_refused_by_name_and_value(said: Files, words: str, tmp_path: Path) -> None:
    """Before weights are looked at, of which there are none here."""
    for name, content in filled(said["config.json"]["model_type"], said).items():
        (tmp_path / name).write_text(json.dumps(content))
    for name in ("tokenizer.json", "chat_template.jinja"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=words) as refused:
        read_source(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", [0, -1, 0.5, 10**12])
@pytest.mark.parametrize(
    ("said", "place", "name"),
    [
        (said, place, name)
        for said, places in (
            (files(SMOLVLM, SMOLVLM_IMAGES), (("scale_factor",), ("text_config", "num_attention_heads"))),
            (files(SMOLVLM, SMOLVLM_IMAGES), (("vision_config", "patch_size"), ("vision_config", "image_size"))),
            (files(QWEN, QWEN_IMAGES), (("num_attention_heads",), ("num_hidden_layers",), ("hidden_size",))),
            (files(QWEN, QWEN_IMAGES), (("vision_config", "num_heads"), ("vision_config", "spatial_merge_size"))),
        )
        for *place, name in places
    ],
)
def test_a_size_that_is_none_is_refused_by_name_and_value(
    said: Files, place: list[str], name: str, value: float, tmp_path: Path
) -> None:
    whole = filled(said["config.json"]["model_type"], said)
    part = whole["config.json"]
    for key in place:
        part = part[key]
    part[name] = value
    for file, content in whole.items():
        (tmp_path / file).write_text(json.dumps(content))
    for file in ("tokenizer.json", "chat_template.jinja"):
        (tmp_path / file).write_text("{}")
    with pytest.raises(InputError, match=f"{name}.*{value}") as refused:
        read_source(tmp_path)
    assert "\n" not in str(refused.value)


def heads_of(width: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        said = json.loads(path.read_text())
        said["text_config"] |= {"hidden_size": 4 * width, "num_attention_heads": 4, "head_dim": width}
        path.write_text(json.dumps(said))

    return change


def write(name: str, content: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(content)

    return change


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (heads_of(24), "head_dim 24 .*multiple of 16"),
        (write("config.json", ""), r"config\.json is empty"),
        (write("config.json", "{"), r"config\.json does not read"),
        (write("config.json", "[]"), r"config\.json does not read"),
        (write("config.json", '{"model_type": "idefics3", "vision_config": [1]}'), r"vision_config \[1\]"),
        (write("config.json", POINTER), r"config\.json is a pointer of Git LFS"),
        (write("config.json", '{"architectures": ["Odd"]}'), r"kind \['Odd'\]; supported are"),
        (write("preprocessor_config.json", POINTER), r"preprocessor_config\.json is a pointer"),
        (write("preprocessor_config.json", "\xff"), r"preprocessor_config\.json does not read"),
        (write("generation_config.json", "{,}"), r"generation_config\.json does not read"),
        (write("tokenizer.json", POINTER), r"tokenizer\.json is a pointer"),
        (write("tokenizer.json", ""), r"tokenizer\.json is empty"),
        (write("chat_template.json", "x"), r"chat_template\.json does not read"),
        (write("model.safetensors", POINTER), r"model\.safetensors is a pointer"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "no image processor"),
        (write("preprocessor_config.json", '{"image_mean": "grey"}'), "image processor|image_mean"),
    ],
)
def test_a_file_that_is_none_is_named(change: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    write_folder(tmp_path, "idefics3", filled("idefics3", files(SMOLVLM, SMOLVLM_IMAGES)))
    change(tmp_path)
    with pytest.raises(InputError, match=words) as refused:
        read_source(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["internvl_chat", "gemma3n", "florence2", "glm4v", "siglip", "qwen3_vl_moe"])
@pytest.mark.parametrize("others", [{}, {"auto_map": {"AutoConfig": "own.Config"}}], ids=["", "own code"])
def test_another_family_is_named_before_anything_else(
    name: str, others: Files, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever the folder lacks, and without a word of transformers'."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name, **others}))
    with pytest.raises(InputError, match=f"holds a model of the kind {name}; supported are smolvlm"):
        read_source(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_folder_without_a_config_says_what_it_is_of(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text('{"processor_class": "PaliGemmaProcessor"}')
    with pytest.raises(InputError, match=r"has no config\.json, .*'PaliGemmaProcessor'; supported are"):
        read_source(tmp_path)
