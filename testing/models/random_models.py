"""Models of published shapes with seeded random weights, as Hugging Face folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordPiece
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from cutline.demo.bundles import TARGET
from cutline.demo.tokenizer import END as DEMO_END
from cutline.demo.tokenizer import PAD, START
from cutline.models.export.quiet import quiet
from cutline.models.families.smolvlm import IMAGE
from cutline.models.prompt import TEMPLATE
from cutline.models.vocabulary import TOKENIZER
from cutline.testing.models.tokenizers import of_pieces

Tokens = Literal["bytes", "pieces", "words"]  # kinds of tokenizers

Words = Mapping[str, int]
END = "<|im_end|>"
BERT = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}

# Of SmolVLM, whose special tokens a tokenizer of `write_text` then has.
PLAIN_TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] }}: \
{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}\
{% endfor %}<end_of_utterance>{% endfor %}"""


def make_smolvlm_256m(
    folder: Path, *, dtype: torch.dtype = torch.bfloat16, longest_edge: int = 2048, depth: tuple[int, int] = (12, 30)
) -> None:
    """A folder like SmolVLM-256M-Instruct's: its shape and image processing, with the demo's tokenizer and template.

    The vocabulary is as large as the published one; most of its tokens have no text. With a `longest_edge` of 512,
    every image is one tile. `depth` counts the layers of tower and decoder.
    """
    words = Tokenizer.from_file(str(TARGET / TOKENIZER)).get_vocab()
    special: dict[str, Any] = {
        "pad_token_id": words[PAD],
        "bos_token_id": words[START],
        "eos_token_id": words[DEMO_END],
    }
    config = SmolVLMConfig(
        image_token_id=words[IMAGE],
        scale_factor=4,
        tie_word_embeddings=False,
        **special,
        vision_config={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": depth[0],
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": 49280,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": depth[1],
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 64,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100000.0,
            "tie_word_embeddings": False,
            **special,
        },
    )
    save_weights(seeded(SmolVLMForConditionalGeneration, config), dtype, folder)
    for name in (TOKENIZER, TEMPLATE):
        shutil.copyfile(TARGET / name, folder / name)
    processor = {
        "do_image_splitting": True,
        "size": {"longest_edge": longest_edge},
        "max_image_size": {"longest_edge": 512},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def write_text(
    folder: Path,
    special: Mapping[str, int],
    size: int,
    *,
    template: str | None = PLAIN_TEMPLATE,
    tokens: Tokens = "bytes",
) -> None:
    """A tokenizer of `size` tokens, the `special` ones at their places and a byte at each other one; and a template.

    It is byte-level, like SentencePiece's of pieces, or like BERT's of words.
    """
    if tokens == "words":
        words_of(special, size).save(str(folder / TOKENIZER))
        return
    of_pieces = tokens == "pieces"
    words, free = dict(special), (place for place in range(size) if place not in special.values())
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), key=ord)
    if of_pieces:
        letters = [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", "\n", *map(chr, range(33, 127))]
    words |= zip(chain(letters, (f"word{number}" for number in range(size))), free, strict=False)
    tokenizer = Tokenizer(BPE(vocab=words, merges=[], byte_fallback=of_pieces))
    if of_pieces:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(content, special=True, normalized=False) for content in special])
    tokenizer.save(str(folder / TOKENIZER))
    if template is not None:
        (folder / TEMPLATE).write_text(template)


def words_of(special: Mapping[str, int], size: int) -> Tokenizer:
    """A tokenizer like BERT's of `size` tokens, the `special` ones at their places: small letters and words."""
    words, free = dict(special), (place for place in range(size) if place not in special.values())
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = (*letters, *(f"##{letter}" for letter in letters), *(f"word{number}" for number in range(size)))
    words |= zip(pieces, free, strict=False)
    tokenizer = Tokenizer(WordPiece(words, unk_token=next(mark for mark in special if "UNK" in mark)))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in special])
    return tokenizer


def seeded(kind: Any, config: Any) -> Any:
    """A model whose rows keep their size from layer to layer, so that all of it shows in what comes out."""
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
                module.weight.normal_(0, 1.5 / module.weight[0].numel() ** 0.5)
                if module.bias is not None:
                    module.bias.normal_(0, 0.3)
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0, 1)
            else:  # matrices and tables that are nobody's but the module's own
                for name, own in module.named_parameters(recurse=False):
                    if "gate" in name and own.numel() == 1:  # which is shut in a new model
                        own.fill_(0.7)
                    elif own.ndim > 1:
                        own.normal_(0, 1.5 / own.shape[0] ** 0.5 if own.ndim == 2 else 1)
            for name, kept in module.named_buffers(recurse=False):
                if kept.is_floating_point() and name not in module._non_persistent_buffers_set:
                    # Bounds that nothing reaches, or what is still neutral.
                    made = kept.sign() * (2 + torch.rand(kept.shape)) if kept.isinf().any() else kept
                    kept.copy_(made + 0.3 * torch.randn(kept.shape))
    return model


def save_weights(model: Any, dtype: torch.dtype, folder: Path) -> None:
    """Write a model's configuration and its weights, as `dtype`, to `folder`."""
    with quiet():
        model.to(dtype).save_pretrained(folder)


TEXT: Mapping[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True, slots=True)
class Small:
    """A model of transformers' `kind`: its `config` by the tokens of a tokenizer that has the `markers`.

    Its text_config is completed with the sizes that all have. `plain` are tokens of its own whose text is seen.
    """

    kind: str
    markers: tuple[str, ...]
    template: str | None
    config: Callable[[Words], dict[str, Any]]
    processor: Mapping[str, Any]
    tokens: Tokens = "bytes"
    flat: bool = False  # the config has no text_config
    unchosen: str | None = None  # a token that the head does not choose from
    plain: tuple[str, ...] = ()
    more_words: int = 0  # rows of the vocabulary that no token has
    videos: Mapping[str, Any] | None = None  # the settings of its video processor

    def smaller(self, *, rope: Mapping[str, Any], more_words: int = 0, **parts: Mapping[str, Any]) -> Small:
        """A model of other sizes, by the `parts` of the config, that sees and reads the same."""

        def config(words: Words) -> dict[str, Any]:
            said = self.config(words)
            sized: dict[str, Any] = {name: {**said[name], **sizes} for name, sizes in parts.items()}
            sized["text_config"]["rope_parameters"] = {**said["text_config"]["rope_parameters"], **rope}
            return said | sized

        return replace(self, config=config, more_words=more_words)

    def write(self, folder: Path) -> None:
        """Make the folder."""
        match self.tokens:
            case "bytes":
                tokenizer, (pad, bos, end) = Tokenizer.from_file(str(TARGET / TOKENIZER)), (PAD, START, END)
            case "pieces":
                tokenizer, (pad, bos, end) = of_pieces(self.markers), ("<pad>", "<bos>", END)
            case _:
                tokenizer, (pad, bos, end) = words_of(BERT, 160), ("[PAD]", "[CLS]", "[SEP]")
        tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (*self.markers, END)])
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in self.plain])
        if self.unchosen is not None:
            tokenizer.add_special_tokens([AddedToken(self.unchosen, special=True)])
        words = tokenizer.get_vocab()
        size = len(words) + 1 + self.more_words if self.unchosen is None else words[self.unchosen]
        special = {"pad_token_id": words[pad], "bos_token_id": words[bos], "eos_token_id": words[end]}
        said = self.config(words)
        text = {**TEXT, "vocab_size": size, **special, **said.pop("text_config")}
        configured: Any = CONFIG_MAPPING[self.kind]
        inside = text if self.flat else {"tie_word_embeddings": False, "text_config": text}
        config = configured(**inside, **said)
        save_weights(seeded(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)], config), torch.float32, folder)
        tokenizer.save(str(folder / TOKENIZER))
        if self.template is not None:
            (folder / TEMPLATE).write_text(self.template)
        tokens = {"bos_token": bos, "eos_token": end, "pad_token": pad, "add_bos_token": self.tokens == "pieces"}
        (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
        (folder / "preprocessor_config.json").write_text(json.dumps(self.processor))
        if self.videos is not None:
            (folder / "video_preprocessor_config.json").write_text(json.dumps(self.videos))
