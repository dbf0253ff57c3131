"""Every setting of a model's configuration files, and how an export treats it.

A setting is honoured, or changes no answer, or is limited: only some of its values are supported, and the export of a
folder with another value fails with an error that names both. Tests check that a model with all of them answers as in
transformers, and that the tables have all settings of transformers' classes. transformers does not read other settings
either. A null value counts as missing.

docs/reference/models.md has these tables, written by scripts/models.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cutline.errors import InputError
from cutline.models.export.fates import SettingFate
from cutline.models.export.fates import honoured as _honoured
from cutline.models.export.fates import idle as _idle
from cutline.models.export.fates import limited as _limited
from cutline.models.export.fates import size as _size
from cutline.models.law.penalties import Penalties

MAX_LAYERS = 1000  # of a tower or a decoder; published models have fewer than 200
_LAYER_COUNTS = frozenset({"num_hidden_layers", "depth"})
_MAX_SIZE = 2**31 - 1
_MAX_SHOWN = 80  # characters of a value in an error

GENERATION: Mapping[str, SettingFate] = {
    **_honoured("a part of the law of the next token", *Penalties.__struct_fields__),
    **_honoured("ends an answer", "eos_token_id"),
    **_idle(
        "each request says its own sampling; without a word it is greedy",
        *("do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    ),
    **_idle("each request says its own length", "max_length", "max_new_tokens"),
    **_idle("of beams, of which there is one", "early_stopping", "length_penalty", "diversity_penalty", "low_memory"),
    **_idle(
        "of drafts, which change no token", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule"
    ),
    **_idle(
        "of drafts, which change no token", "assistant_confidence_threshold", "prompt_lookup_num_tokens", "use_mtp"
    ),
    **_idle("of drafts, which change no token", "max_matching_ngram_size", "assistant_early_exit", "speculation_type"),
    **_idle(
        "of drafts, which change no token", "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight"
    ),
    **_idle("how transformers computes, not what", "use_cache", "cache_config", "max_cache_len", "prefill_chunk_size"),
    **_idle("how transformers computes, not what", "compile_config", "disable_compile", "continuous_batching_config"),
    **_idle("what transformers returns beside the answer", "output_attentions", "output_hidden_states"),
    **_idle("what transformers returns beside the answer", "output_scores", "output_logits", "return_dict_in_generate"),
    **_idle("no prompt is padded, or begins with an answer", "pad_token_id", "bos_token_id", "decoder_start_token_id"),
    **_idle("a prompt has more than one token", "forced_bos_token_id"),
    **_idle("logits are finite", "remove_invalid_values"),
    **_idle("notes", "transformers_version", "_from_model_config", "_commit_hash"),
    **_limited((1,), "num_beams", "num_return_sequences", "num_beam_groups"),
    **_limited((1.0,), "guidance_scale", "encoder_repetition_penalty"),
    **_limited((0,), "encoder_no_repeat_ngram_size", "penalty_alpha"),
    **_limited((False,), "renormalize_logits", "token_healing"),
    **_limited(("static", "dynamic", "offloaded", "hybrid", "offloaded_static"), "cache_implementation"),
    **_limited((), "sequence_bias", "forced_eos_token_id", "exponential_decay_length_penalty", "watermarking_config"),
    **_limited((), "stop_strings", "max_time", "constraints", "force_words_ids", "dola_layers"),
}

EVERY_CONFIG: Mapping[str, SettingFate] = {
    **_honoured("the family", "model_type"),
    **_honoured("the type in which a worker computes, unless it is told another", "dtype", "torch_dtype"),
    **_honoured("the head's weights are the embeddings", "tie_word_embeddings"),
    **_idle("of training", "initializer_range", "attention_dropout", "problem_type", "id2label", "label2id"),
    **_idle("what transformers returns beside the answer", "output_attentions", "output_hidden_states", "return_dict"),
    **_idle("how transformers computes, not what", "use_cache", "chunk_size_feed_forward", "attn_implementation"),
    **_idle("how transformers computes, not what", "_attn_implementation", "experts_implementation"),
    **_idle("notes", "transformers_version", "_name_or_path", "name_or_path", "tokenizer_class", "_commit_hash"),
    **_idle("notes", "base_model_tp_plan", "base_model_pp_plan"),
    **_limited((False,), "is_encoder_decoder", "add_cross_attention"),
    **_limited((), "quantization_config", "quantization", "compression_config"),
}

CONFIG: Mapping[str, SettingFate] = {
    **EVERY_CONFIG,
    **_honoured("the parts of the model, below", "text_config", "vision_config"),
    **_honoured("must be a class of the family that answers", "architectures"),
    **_honoured("the token that stands for a part of an image", "image_token_id"),
    **_honoured("the token that stands for a part of an image", "image_token_index"),
    **_size("patches that become one image token", "scale_factor"),
    **_honoured("as many as the tower gives; other numbers are refused", "image_seq_length"),
    **_size("image tokens of a picture", "mm_tokens_per_image"),
    **_size("the decoder's, in folders without a text_config", "hidden_size", "vocab_size"),
    **_honoured("arithmetic", "projector_hidden_act", "multimodal_projector_bias"),
    **_honoured("must be the image processor's", "image_grid_pinpoints"),
    **_honoured("anyres_max_ and a number; else refused", "vision_aspect_ratio"),
    **_idle("frames of videos have the tokens of images", "video_token_index"),
    **_size("of GIT's decoder, in config.json itself", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    **_size("of GIT's decoder, in config.json itself", "max_position_embeddings"),
    **_honoured("arithmetic of GIT's decoder", "hidden_act", "layer_norm_eps"),
    **_idle("of training", "hidden_dropout_prob", "attention_probs_dropout_prob"),
    **_honoured("of GIT's models of videos, which are refused", "num_image_with_embedding"),
    **_limited((0.5,), "downsample_ratio"),
    **_honoured("the last layer, as the family takes it; else refused", "vision_feature_layer"),
    **_honoured("the last layer, as the family takes it; else refused", "vision_feature_select_strategy"),
    **_size("patches along a side of an image token, as the image processor's", "downsample_factor"),
    **_size("sizes", "projector_hidden_size"),
    **_honoured("where MiniCPM-V's tower makes one row of four, and how; other ways are refused", "insert_layer_id"),
    **_honoured("as MiniCPM-V is published; else refused", "merge_kernel_size", "merger_times", "downsample_mode"),
    **_limited((False,), "drop_vision_last_layer"),
    **_honoured("arithmetic", "projector_bias", "projector_use_layernorm"),
    **_idle("as wide as the decoder, or nothing loads", "projection_dim"),
    **_idle("written by the family", "boi_token_id", "eoi_token_id", "boi_token_index", "eoi_token_index"),
    **_idle("frames of videos have the tokens of images; Gemma 4 reads it as a filler", "video_token_id"),
    **_idle("written by the chat template", "vision_start_token_id", "vision_end_token_id", "vision_token_id"),
    **_idle("no prompt is padded, or begins with an answer", "pad_token_id", "bos_token_id"),
    **_honoured("a token that Gemma 4 reads as a filler where it is no picture's", "audio_token_id"),
    **_idle("of sounds, which nobody hears", "audio_config", "boa_token_id", "eoa_token_id", "eoa_token_index"),
    **_idle("the folder's code is never run; the class of transformers is", "auto_map"),
}

TEXT: Mapping[str, SettingFate] = {
    **EVERY_CONFIG,
    **_idle("the whole model's counts", "architectures"),
    **_size("sizes", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    **_size("sizes", "num_key_value_heads", "max_position_embeddings"),
    **_size("a multiple of 16; other widths are refused", "head_dim"),
    **_honoured("arithmetic", "hidden_act", "hidden_activation", "rms_norm_eps", "attention_bias", "mlp_bias"),
    **_honoured("arithmetic", "norm_eps", "conv_bias"),
    **_size("rows that a short convolution of LFM2 spans", "conv_L_cache"),
    **_honoured("the width of LFM2's MLP", "block_multiple_of", "block_ffn_dim_multiplier", "block_auto_adjust_ff_dim"),
    **_idle("layer_types say so", "full_attn_idxs"),
    **_honoured("arithmetic", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"),
    **_honoured("of PaliGemma's prompt, and Gemma 4's pictures; else refused", "use_bidirectional_attention"),
    **_honoured(
        "rope_type default; Qwen's mrope, Gemma 4's proportional, InternVL's dynamic, the others' linear, llama3 and "
        "yarn; else refused",
        *("rope_parameters", "rope_scaling", "rope_theta"),
    ),
    **_honoured("ends an answer where generation_config.json is absent", "eos_token_id"),
    **_honoured(
        "full_attention, and what else the family's layers are; else refused",
        "layer_types",
    ),
    **_honoured("the window of Gemma's layers; no other family has one", "sliding_window"),
    **_idle("layer_types say so", "use_sliding_window", "max_window_layers"),
    **_idle("no prompt is padded, or begins with an answer", "pad_token_id", "bos_token_id"),
    **_idle("how transformers computes, not what", "pretraining_tp"),
    **_honoured(
        "the share of a head that is rotated: Qwen3.5's and Gemma 4's; else 1, or refused", "partial_rotary_factor"
    ),
    **_size("sizes of Qwen3.5's layers without attention", "linear_num_key_heads", "linear_num_value_heads"),
    **_size("sizes of Qwen3.5's layers without attention", "linear_key_head_dim", "linear_value_head_dim"),
    **_size("sizes of Qwen3.5's layers without attention", "linear_conv_kernel_dim"),
    **_size("sizes of Gemma 4's experts", "num_experts", "top_k_experts", "moe_intermediate_size"),
    **_honoured("sizes of heads in Gemma 4's layers without a window", "global_head_dim", "num_global_key_value_heads"),
    **_honoured("sizes of heads in Gemma 4's layers without a window", "per_layer_config"),
    **_honoured("how Gemma 4's layers keep keys and share them", "attention_k_eq_v", "num_kv_shared_layers"),
    **_honoured("arithmetic of Gemma 4", "use_double_wide_mlp", "enable_moe_block"),
    **_honoured("how wide a row is that Gemma 4's layers are given; may be 0", "hidden_size_per_layer_input"),
    **_honoured("as vocab_size where layers are given rows; else refused", "vocab_size_per_layer_input"),
}

VISION: Mapping[str, SettingFate] = {
    **EVERY_CONFIG,
    **_idle("the whole model's counts", "architectures"),
    **_size("sizes", "hidden_size", "out_hidden_size", "intermediate_size", "num_hidden_layers", "depth"),
    **_size("sizes", "num_attention_heads", "num_heads", "image_size", "patch_size", "temporal_patch_size"),
    **_size("sizes", "spatial_merge_size", "window_size", "fullatt_block_indexes"),
    **_size("places that SigLIP 2's tower learnt: a square", "num_patches"),
    **_size("sizes", "embed_dim", "mlp_ratio", "num_position_embeddings", "deepstack_visual_indexes"),
    **_honoured("arithmetic", "hidden_act", "layer_norm_eps", "rope_parameters"),
    **_honoured("arithmetic", "attention_bias", "use_qk_norm", "norm_type", "use_mean_pooling"),
    **_honoured("arithmetic", "use_absolute_position_embeddings", "layer_scale_init_value"),
    **_idle("of training", "hidden_dropout_prob", "projection_dropout", "use_mask_token"),
    **_idle("no pooled row is asked for", "vision_use_head"),
    **_honoured("how fast a video's time counts with Qwen2.5-VL; elsewhere idle", "tokens_per_second"),
    **_size("sizes of Gemma 4's tower", "head_dim", "num_key_value_heads", "position_embedding_size"),
    **_honoured("as the image processor's; else refused", "pooling_kernel_size"),
    **_honoured("arithmetic of Gemma 4's tower", "hidden_activation", "rms_norm_eps", "use_clipped_linears"),
    **_honoured("arithmetic of Gemma 4's tower", "standardize"),
    **_idle("Gemma 4's tower has a place for every patch that a picture may have", "max_position_embeddings"),
    **_idle("the whole model's counts", "insert_layer_id"),
    **_honoured("as MiniCPM-V is published; else refused", "window_kernel_size"),
    **_limited((3,), "num_channels", "in_channels"),
}

IMAGES: Mapping[str, SettingFate] = {
    **_honoured("must be a class of the family's", "image_processor_type", "feature_extractor_type"),
    **_size("sizes; as many as the tower's where it has them", "size", "max_image_size", "patch_size", "merge_size"),
    **_size("sizes; as many as the tower's where it has them", "temporal_patch_size", "min_pixels", "max_pixels"),
    **_honoured("normalisation", "image_mean", "image_std"),
    **_honoured("whether images are cut into tiles", "do_image_splitting"),
    **_honoured("the family's own filter; others are refused", "resample"),
    **_idle("every image is RGB", "do_convert_rgb", "input_data_format", "data_format"),
    **_idle("the tiles of an image are alike", "do_pad", "pad_size", "return_row_col_info"),
    **_honoured("the square that GIT sees; other families' processors do not crop", "do_center_crop", "crop_size"),
    **_idle("how a size is read, which each family knows", "default_to_square"),
    **_idle("how transformers computes, not what", "device", "disable_grouping", "return_tensors"),
    **_honoured("as many as the tower gives; other numbers are refused", "image_seq_length"),
    **_size("how many tiles a picture is cut into", "min_patches", "max_patches"),
    **_idle("InternVL's processor always cuts", "crop_to_patches"),
    **_honoured("the sizes that a picture is fitted into", "image_grid_pinpoints"),
    **_size("LFM2-VL's patches and tiles", "encoder_patch_size", "downsample_factor", "tile_size"),
    **_size("LFM2-VL's patches and tiles", "min_tiles", "max_tiles", "min_image_tokens", "max_image_tokens"),
    **_honoured("when LFM2-VL cuts a picture, and if it comes whole too", "max_pixels_tolerance", "use_thumbnail"),
    **_honoured("true; else refused, but of LFM2-VL, whose processor resizes anyway", "do_resize"),
    **_size("how many slices a picture of MiniCPM-V has, and their size", "max_slice_nums", "scale_resolution"),
    **_honoured("whether MiniCPM-V slices pictures, and numbers them", "slice_mode", "use_image_id"),
    **_honoured("must be the config's", "downsample_mode"),
    **_limited((False,), "do_pan_and_scan"),
    **_idle(
        "of pan and scan, which is refused",
        *("pan_and_scan_min_crop_size", "pan_and_scan_max_num_crops", "pan_and_scan_min_ratio_to_activate"),
    ),
    **_honoured("how SmolVLM2 samples videos", "video_sampling"),
    **_idle("notes", "processor_class", "transformers_version", "auto_map"),
    **_honoured("false for Gemma 4, true for all others; else refused", "do_normalize"),
    **_size("how many image tokens a picture of Gemma 4 has at most, and what they are of", "max_soft_tokens"),
    **_honoured("as the tower's, or refused", "pooling_kernel_size"),
    **_limited((True,), "do_rescale"),
    **_limited((1 / 255,), "rescale_factor"),
}

PROCESSOR: Mapping[str, SettingFate] = {
    **_honoured("the image processor, as in preprocessor_config.json", "image_processor"),
    **_honoured("the chat template", "chat_template"),
    **_honoured("must be the config's", "vision_aspect_ratio", "vision_feature_select_strategy"),
    **_honoured("as many as the tower gives; other numbers are refused", "num_image_tokens"),
    **_idle("the tokenizer's, or the tower's", "image_token", "video_token", "patch_size"),
    **_honoured("true for LFM2-VL; else refused", "use_image_special_tokens"),
    **_honoured("as many as the tower gives; other numbers are refused", "image_seq_len", "image_seq_length"),
    **_honoured("how Qwen samples videos, as in video_preprocessor_config.json; elsewhere idle", "video_processor"),
    **_idle("of sounds, which nobody hears", "feature_extractor", "audio_seq_length", "audio_ms_per_token"),
    **_idle("notes", "processor_class", "auto_map", "transformers_version", "tokenizer"),
}

TOKENIZER: Mapping[str, SettingFate] = {
    **_honoured("the chat template", "chat_template"),
    **_honoured("must be the family's own", "image_token", "fake_image_token", "global_image_token"),
    **_honoured("must be the family's own", "image_start_token", "image_end_token", "image_thumbnail_token"),
    **_honoured("must be the family's own", "slice_start_token", "slice_end_token"),
    **_honoured("must be the family's own", "image_id_start_token", "image_id_end_token"),
    **_idle("prompts are whole", "model_max_length", "truncation_side", "padding_side", "padding", "truncation"),
    **_idle("tokenizer.json says it", "tokenizer_class", "added_tokens_decoder", "backend", "vocab_size", "legacy"),
    **_idle("tokenizer.json says it", "additional_special_tokens", "extra_special_tokens", "vocab_file", "merges_file"),
    **_idle("tokenizer.json says it", "do_lower_case", "do_basic_tokenize", "strip_accents", "tokenize_chinese_chars"),
    **_idle("tokenizer.json says it", "never_split"),
    **_idle("tokenizer.json says it", "model_specific_special_tokens", "tokenizer_file", "added_tokens"),
    **_idle("written by the chat template", "bos_token", "eos_token", "pad_token", "unk_token", "cls_token"),
    **_idle("written by the chat template", "sep_token", "mask_token", "end_of_utterance_token", "video_token"),
    **_idle(
        "of decoding, which is byte for byte", "clean_up_tokenization_spaces", "errors", "spaces_between_special_tokens"
    ),
    **_idle("notes", "processor_class", "auto_map", "name_or_path", "special_tokens_map_file", "is_local"),
    **_honoured("written by the chat template, or refused", "add_bos_token"),
    **_limited((False,), "add_prefix_space", "split_special_tokens", "add_eos_token"),
}

Tables = Mapping[str, Mapping[str, SettingFate]]  # by file, and part of it

TABLES: Tables = {
    "generation_config.json": GENERATION,
    "config.json": CONFIG,
    "config.json, text_config": TEXT,
    "config.json, vision_config": VISION,
    "preprocessor_config.json": IMAGES,
    "processor_config.json": PROCESSOR,
    "tokenizer_config.json": TOKENIZER,
}


def check(folder: Path, where: str, said: Mapping[str, Any], tables: Tables = TABLES) -> None:
    """Raises InputError for the first of the settings `said` in `where`, a key of `tables`, that is not supported."""
    table = tables[where]
    for name, value in said.items():
        setting = table.get(name)
        if setting is not None and setting.fate == "limited" and not _is_taken(value, setting.taken):
            others = " or ".join(map(shown, setting.taken))
            runs = f"; supported: {others}" if others else ", which is not supported"
            raise InputError(f"{folder} has {name} {shown(value)} in {where}{runs}")
        if setting is not None and setting.size:
            _check_size(folder, where, name, value)


def check_flat(folder: Path, said: Mapping[str, Any]) -> None:
    """Check sizes at the top level of config.json, where older folders have them, before a model is made of them.

    Raises InputError.
    """
    for name, value in said.items():
        if any(name in table and table[name].size for table in (TEXT, VISION)):
            _check_size(folder, "config.json", name, value)


def _check_size(folder: Path, where: str, name: str, value: Any) -> None:
    limit = MAX_LAYERS if name in _LAYER_COUNTS else _MAX_SIZE
    if isinstance(value, int | float) and not 1 <= value <= limit:
        raise InputError(f"{folder} has {name} {shown(value)} in {where}; supported: numbers from 1 to {limit}")


def shown(value: Any) -> str:
    """A value as text for an error, on one line and shortened."""
    if isinstance(value, dict) and "quant_method" in value:  # put first, as the most useful part
        value = {"quant_method": value["quant_method"], **value}
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _is_taken(value: Any, taken: tuple[Any, ...]) -> bool:
    """Whether a limited setting's value is one of those `taken`, or None."""
    if value is None:
        return True
    if isinstance(value, float) and not isinstance(value, bool):
        return any(isinstance(known, int | float) and abs(value - known) <= 1e-9 for known in taken)
    return any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in taken)
