"""Small dual encoders with seeded random weights, as Hugging Face folders: a CLIP, a SigLIP, and a SigLIP 2."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE, Unigram
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from cutline.models.encoders.tokenizer import TOKENIZER
from cutline.testing.models.random_models import seeded

UNKNOWN = "<unk>"
KINDS = ("clip", "siglip", "siglip2")
CORPUS = (
    "a photo of a cat",
    "a photo of a dog in the garden",
    "a person at the gate",
    "an empty yard at night, with snow",
    "a delivery van; two people unload it!",
    "the red car's front wheel",
    "Größe, naïve, 東京, мир",
)
VISION = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def make_encoder(kind: str, folder: Path, **changes: Mapping[str, Any]) -> Path:
    """A folder of the `kind` (of KINDS), with `changes` to its `vision`, its `text`, its `images`."""
    folder.mkdir(parents=True, exist_ok=True)
    return {"clip": _make_clip, "siglip": _make_siglip, "siglip2": _make_siglip2}[kind](folder, changes)


def _make_clip(folder: Path, changes: Mapping[str, Mapping[str, Any]]) -> Path:
    tokenizer = clip_tokenizer()
    words = tokenizer.get_vocab()
    special = {"bos_token_id": words["<|startoftext|>"], "eos_token_id": words["<|endoftext|>"], "pad_token_id": 1}
    text = TEXT | special | {"vocab_size": len(words), "max_position_embeddings": 24} | dict(changes.get("text", {}))
    config = CLIPConfig(projection_dim=24, text_config=text, vision_config=VISION | dict(changes.get("vision", {})))
    _save(seeded(CLIPModel, config), folder)
    images = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(images | dict(changes.get("images", {}))))
    _save_tokenizer(tokenizer, folder, {"tokenizer_class": "CLIPTokenizer", "model_max_length": 24})
    return folder


def _make_siglip(folder: Path, changes: Mapping[str, Mapping[str, Any]]) -> Path:
    said = {"tokenizer_class": "SiglipTokenizer", "pad_token": "</s>", "model_max_length": 16}
    return _write_siglip(folder, changes, siglip_tokenizer(), said, resample=3)


def _make_siglip2(folder: Path, changes: Mapping[str, Mapping[str, Any]]) -> Path:
    said = {"tokenizer_class": "Siglip2Tokenizer", "pad_token": "<pad>", "padding_side": "right"}
    return _write_siglip(folder, changes, siglip2_tokenizer(), said | {"model_max_length": 16}, resample=2)


def _write_siglip(
    folder: Path,
    changes: Mapping[str, Mapping[str, Any]],
    tokenizer: Tokenizer,
    said: Mapping[str, Any],
    *,
    resample: int,
) -> Path:
    text = TEXT | {"vocab_size": tokenizer.get_vocab_size() + 8, "max_position_embeddings": 16, "projection_size": 48}
    config = SiglipConfig(
        text_config=text | dict(changes.get("text", {})), vision_config=VISION | dict(changes.get("vision", {}))
    )
    _save(seeded(SiglipModel, config), folder)
    images = {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": 32, "width": 32},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": resample,
        "do_convert_rgb": None,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(images | dict(changes.get("images", {}))))
    _save_tokenizer(tokenizer, folder, said)
    return folder


def clip_tokenizer() -> Tokenizer:
    """CLIP's byte-level BPE, whose words end with `</w>`, trained on CORPUS."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    trained = Tokenizer(BPE(unk_token=end, continuing_subword_prefix="", end_of_word_suffix="</w>"))
    trained.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    pattern = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    words = model["vocab"]
    for letter in alphabet:  # each also as the end of a word
        words.setdefault(f"{letter}</w>", len(words))
    words |= {start: len(words), end: len(words) + 1}
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(BPE(words, merges, unk_token=end, continuing_subword_prefix="", end_of_word_suffix="</w>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
    tokenizer.add_special_tokens([AddedToken(start, special=True), AddedToken(end, special=True, normalized=False)])
    ids = tokenizer.get_vocab()
    tokenizer.post_processor = processors.RobertaProcessing((end, ids[end]), (start, ids[start]), False, False)
    return tokenizer


def siglip_tokenizer() -> Tokenizer:
    """SigLIP's unigrams, for text in small letters without punctuation; `</s>` ends a text, and fills it up."""
    tokenizer = Tokenizer(Unigram())
    punctuation = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(punctuation), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<pad>", "</s>", UNKNOWN], unk_token=UNKNOWN, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return tokenizer


def siglip2_tokenizer() -> Tokenizer:
    """SigLIP 2's, which is Gemma's: BPE that falls back to bytes, with added tokens that are plain white space."""
    special = ["<pad>", "<eos>", "<bos>", UNKNOWN]
    trained = Tokenizer(BPE(unk_token=UNKNOWN))
    trained.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    trained.normalizer = normalizers.Replace(" ", "▁")
    letters = sorted({letter for text in CORPUS for letter in text.lower()} - {" "})
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)],
        initial_alphabet=letters,
        show_progress=False,
    )
    trained.train_from_iterator([text.lower() for text in CORPUS], trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(BPE(model["vocab"], merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer, tokenizer.normalizer = trained.pre_tokenizer, trained.normalizer
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("\n", "\n\n", "▁▁", "▁▁▁")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", pair="$A <eos> $B <eos>", special_tokens=[("<eos>", tokenizer.token_to_id("<eos>"))]
    )
    return tokenizer


def _save(model: Any, folder: Path) -> None:
    with torch.no_grad():
        if hasattr(model, "logit_bias"):  # as they begin, a SigLIP would give every text the same score
            model.logit_scale.fill_(2.3)
            model.logit_bias.fill_(-1.5)
    model.save_pretrained(folder)


def _save_tokenizer(tokenizer: Tokenizer, folder: Path, said: Mapping[str, Any]) -> None:
    tokenizer.save(str(folder / TOKENIZER))
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
