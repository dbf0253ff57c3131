"""Every setting of a dual encoder's configuration files, and how an export treats it.

The words are those of cutline.models.export.settings.
"""

from __future__ import annotations

from collections.abc import Mapping

from cutline.models.export.fates import SettingFate, honoured, idle, limited, size
from cutline.models.export.settings import EVERY_CONFIG, Tables

CONFIG: Mapping[str, SettingFate] = {
    **EVERY_CONFIG,
    **honoured("the towers, below; the second names are older", "text_config", "vision_config"),
    **honoured("the towers, below; the second names are older", "text_config_dict", "vision_config_dict"),
    **honoured("must be CLIPModel or SiglipModel", "architectures"),
    **size("numbers of a row that is compared", "projection_dim"),
    **idle("the weights have the scale itself", "logit_scale_init_value"),
    **idle("of training", "initializer_factor"),
    **idle("the folder's code is never run; the class of transformers is", "auto_map"),
}

TEXT: Mapping[str, SettingFate] = {
    **EVERY_CONFIG,
    **idle("the whole model's counts", "architectures", "projection_dim"),
    **size("sizes", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    **size("sizes", "projection_size"),
    **size("texts have at most so many tokens, and no more than model_max_length", "max_position_embeddings"),
    **honoured("arithmetic", "hidden_act", "layer_norm_eps"),
    **honoured("of CLIP, must be what the tokenizer ends a text with", "eos_token_id"),
    **idle("the tokenizer's counts", "pad_token_id", "bos_token_id"),
    **idle("of training", "initializer_factor"),
}

VISION: Mapping[str, SettingFate] = {
    **EVERY_CONFIG,
    **idle("the whole model's counts", "architectures", "projection_dim"),
    **size("sizes", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    **size("a number; a width and a height are refused", "image_size", "patch_size"),
    **honoured("arithmetic", "hidden_act", "layer_norm_eps"),
    **idle("of training", "initializer_factor"),
    **limited((3,), "num_channels"),
    **limited((True,), "vision_use_head"),
}

IMAGES: Mapping[str, SettingFate] = {
    **honoured("must be CLIPImageProcessor or SiglipImageProcessor", "image_processor_type", "feature_extractor_type"),
    **honoured("what an image is resized to: a shortest_edge, or a height and a width", "size", "default_to_square"),
    **honoured("the square that is cut out of it; as large as the tower's", "do_center_crop", "crop_size"),
    **honoured("Pillow's filter", "resample"),
    **honoured("normalisation", "image_mean", "image_std"),
    **idle("every image is RGB", "do_convert_rgb", "input_data_format", "data_format"),
    **idle("no image is padded", "pad_size"),
    **idle("how transformers computes, not what", "device", "disable_grouping", "return_tensors", "image_seq_length"),
    **idle("notes", "processor_class", "transformers_version", "auto_map"),
    **limited((True,), "do_resize", "do_rescale", "do_normalize"),
    **limited((False,), "do_pad", "use_square_size"),
    **limited((1 / 255,), "rescale_factor"),
}

PROCESSOR: Mapping[str, SettingFate] = {
    **honoured("the image processor, as in preprocessor_config.json", "image_processor"),
    **idle("notes", "processor_class", "auto_map", "transformers_version", "tokenizer"),
}

TOKENIZER: Mapping[str, SettingFate] = {
    **honoured(
        "the class of transformers that makes the tokenizer; that of SigLIP 1 is tokenizer.json", "tokenizer_class"
    ),
    **honoured("of SigLIP, fills a text up", "pad_token", "padding_side"),
    **honoured("texts have at most so many tokens", "model_max_length"),
    **honoured("by the class of transformers", "bos_token", "eos_token", "unk_token", "mask_token", "cls_token"),
    **honoured("by the class of transformers", "sep_token", "add_bos_token", "add_eos_token", "add_prefix_space"),
    **honoured("by the class of transformers", "additional_special_tokens", "extra_special_tokens", "vocab_size"),
    **honoured("by the class of transformers", "added_tokens_decoder", "legacy", "sp_model_kwargs", "added_tokens"),
    **honoured("by the class of transformers", "model_specific_special_tokens"),
    **idle("a text that is too long is refused", "truncation_side", "truncation", "padding"),
    **idle(
        "of decoding, which no text needs", "clean_up_tokenization_spaces", "errors", "spaces_between_special_tokens"
    ),
    **idle("tokenizer.json is there", "vocab_file", "merges_file", "tokenizer_file", "use_default_system_prompt"),
    **idle("notes", "processor_class", "auto_map", "name_or_path", "special_tokens_map_file", "is_local", "backend"),
    **limited((True,), "do_lower_case"),
    **limited((False,), "split_special_tokens"),
}

TABLES: Tables = {
    "config.json": CONFIG,
    "config.json, text_config": TEXT,
    "config.json, vision_config": VISION,
    "preprocessor_config.json": IMAGES,
    "processor_config.json": PROCESSOR,
    "tokenizer_config.json": TOKENIZER,
}
