"""Gemma 4: most layers of the decoder have a window, and the last ones may read the keys of earlier ones.

Heads of layers without a window have sizes of their own. In the smaller models each layer is given a row for every
token, which follows from the token and from the row with which it enters; in the larger ones the tokens of a picture
see each other both ways, in layers with a window alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from cutline.models.families.family import Arrays, Count, Grid, Index, Spread
from cutline.models.families.gemma.blocks import picture_blocks
from cutline.models.families.gemma.tower import PatchFamily
from cutline.models.families.layer_state import KEYS_VALUES, KeysValues, LayerState, SharedKeys
from cutline.models.families.parts import Attention, Decoding, Parts
from cutline.models.families.positions import Positions, frequencies
from cutline.models.sight import CAUSAL, Sight

WINDOWED, FULL = "sliding_attention", "full_attention"
_TURNS = {WINDOWED: ("default",), FULL: ("default", "proportional")}
_HEADS = 16  # a head's width is a multiple of it: ONNX Runtime's attention has no others

Share = Annotated[float, msgspec.Meta(gt=0, le=1)]


class Gemma4(PatchFamily, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="gemma4"):
    """Of `layers` those in `full` see all, with `full_heads` heads of keys of a `full_width`; the others the `window`.

    The last `sharing` ones keep no keys. Each is given `given` values a token; 0 for none. With `both_ways` tokens of a
    picture see each other. The tokens `unread` are read as a `filler`, wherever they are no picture's. Heads of a
    `width` are rotated by the base `theta`; those of a `full_width` by `full_theta`, and a `full_share` of them.
    """

    layers: Count
    window: Count
    full: tuple[Index, ...]
    width: Count
    full_heads: Count
    full_width: Count
    theta: Spread
    full_theta: Spread
    full_share: Share
    sharing: Index
    given: Index
    both_ways: bool
    experts: bool
    filler: Index
    unread: tuple[Index, ...]

    kinds: ClassVar[tuple[str, ...]] = ("gemma4",)
    declined: ClassVar[Mapping[str, str]] = {
        "gemma4_unified": "it has no vision tower: the decoder takes patches as they are",
        **dict.fromkeys(
            ("gemma4_assistant", "gemma4_unified_assistant"),
            "it has no keys of its own: it drafts from those that its target keeps",
        ),
    }
    answering: ClassVar[tuple[str, ...]] = ("Gemma4ForConditionalGeneration",)
    apart: ClassVar[frozenset[str]] = PatchFamily.apart | {
        *("layers", "window", "full", "width", "full_heads", "full_width", "theta", "full_theta", "full_share"),
        *("sharing", "given", "both_ways", "experts", "filler", "unread"),
    }

    @classmethod
    def of(cls, config: Any, processor: Mapping[str, Any]) -> Gemma4:
        """See `Family.of`."""
        text = config.text_config
        if text.model_type != "gemma4_text":
            raise ValueError(f"a decoder of the kind {text.model_type} (text_config), where gemma4_text is supported")
        for kind, turning in text.rope_parameters.items():
            if turning["rope_type"] not in _TURNS[kind] or turning.get("factor", 1.0) != 1:
                raise ValueError(f"rope_type {turning['rope_type']!r} for {kind}; supported: {', '.join(_TURNS[kind])}")
        if text.use_bidirectional_attention not in (None, "vision"):
            raise ValueError(f"use_bidirectional_attention {text.use_bidirectional_attention!r}; supported: 'vision'")
        if text.num_kv_shared_layers >= text.num_hidden_layers:
            raise ValueError(f"num_kv_shared_layers {text.num_kv_shared_layers}, which leaves no layer with keys")
        given = text.hidden_size_per_layer_input or 0
        if given and text.vocab_size_per_layer_input != text.vocab_size:
            raise ValueError(f"vocab_size_per_layer_input {text.vocab_size_per_layer_input}, not {text.vocab_size}")
        full = tuple(layer for layer, kind in enumerate(text.layer_types) if kind == FULL)
        sizes = {(one.num_key_value_heads, one.head_dim) for one in (text.per_layer_config[layer] for layer in full)}
        if len(sizes) != 1 or min(sizes)[1] % _HEADS:
            raise ValueError(f"heads of {FULL} {sorted(sizes)!r}; supported: all alike, a multiple of {_HEADS} wide")
        ((full_heads, full_width),) = sizes
        turning = text.rope_parameters[FULL]
        proportional = turning["rope_type"] == "proportional"
        unread = (config.image_token_id, config.video_token_id, config.audio_token_id)
        return cls._checked(
            **cls.read(config.vision_config, processor),
            layers=text.num_hidden_layers,
            window=text.sliding_window,
            full=full,
            width=cls.usual_layer(text).head_dim,
            full_heads=full_heads,
            full_width=full_width,
            theta=text.rope_parameters[WINDOWED]["rope_theta"],
            full_theta=turning["rope_theta"],
            full_share=turning.get("partial_rotary_factor", 1.0) if proportional else 1.0,
            sharing=text.num_kv_shared_layers,
            given=given,
            both_ways=text.use_bidirectional_attention == "vision",
            experts=text.enable_moe_block,
            filler=text.pad_token_id,
            unread=tuple(token for token in unread if token is not None),
        )

    @classmethod
    def usual_layer(cls, text: Any) -> Any:
        """One with a window."""
        return text.per_layer_config[text.layer_types.index(WINDOWED)]

    @property
    def parts(self) -> Parts:  # type: ignore[override]
        """Those that a model with these fields has."""
        giving = ("embed_tokens_per_layer", "per_layer_model_projection", "per_layer_projection_norm")
        return Parts(
            image=("vision_tower.patch_embedder.input_proj",),
            entering=("vision_tower.patch_embedder.position_embedding_table",),
            tower="vision_tower.encoder.layers",
            connector=("embed_vision",),
            learnt=("vision_tower.std_bias", "vision_tower.std_scale") if self.standardised else (),
            decoder="language_model",
            giving=giving if self.given else (),
            unused=("audio_tower", "embed_audio"),
        )

    def positions(self, image_tokens: NDArray[np.bool_], grids: Sequence[Grid], times: Sequence[int] = ()) -> Positions:
        """Positions count up from 0; where they see each other, the tokens of each picture are a block.

        Raises InputError where they are none that pictures with these `grids` have.
        """
        del times
        blocks = picture_blocks(image_tokens, len(grids), self.most) if self.both_ways else ()
        return Positions(np.arange(len(image_tokens))[None], blocks)

    def sight(self, layer: int) -> Sight:
        """All before a row, or a window, in which what stands in the same block behind it may be seen too."""
        return CAUSAL if layer in self.full else Sight(self.window, "ahead" if self.both_ways else "shut")

    def keeps(self, layer: int) -> LayerState:
        """Keys, but those of the last layer with the same sight that has some, where it has none."""
        if layer >= (first := self.layers - self.sharing):
            return SharedKeys(max(one for one in range(first) if (one in self.full) == (layer in self.full)))
        return KeysValues(self.full_heads, self.full_width) if layer in self.full else KEYS_VALUES

    def rotary(self, layer: int) -> str | None:
        """Layers with a window turn by other frequencies."""
        return FULL if layer in self.full else WINDOWED

    def rotations(self, positions: NDArray[np.int64]) -> Arrays:
        """Of either kind of layer; the last pairs of a head may stay as they are."""
        exponents = frequencies(self.full_theta, self.full_width // 2)
        turned = int(self.full_share * self.full_width // 2)
        exponents[turned:] = 0
        kinds = {WINDOWED: frequencies(self.theta, self.width // 2), FULL: exponents}
        angles = {kind: np.tile(positions[0][:, None].astype(np.float32) * one, 2) for kind, one in kinds.items()}
        made = {f"cos.{kind}": np.cos(angle) for kind, angle in angles.items()}
        return made | {f"sin.{kind}": np.sin(angle) for kind, angle in angles.items()}

    def read_as(self, ids: Any) -> Any:
        """Fillers for all that is not text."""
        for token in self.unread:
            ids = ids + (self.filler - ids) * (ids == token)
        return ids

    @property
    def layer_inputs(self) -> int:
        """As many values as it says."""
        return self.given

    def give(self, modules: Sequence[Any], own: Any, rows: Any) -> Any:
        """Half of it from the token, half from the row with which it enters."""
        projection, norm = modules
        made = norm((projection(rows) * rows.shape[-1] ** -0.5).unflatten(-1, (self.layers, self.given)))
        return (made + own.unflatten(-1, (self.layers, self.given))) * 2.0**-0.5

    def token_types(self, image_tokens: NDArray[np.bool_], grids: Sequence[Grid]) -> Arrays:
        """1 for image tokens."""
        del grids
        return {"mm_token_type_ids": image_tokens.astype(np.int64)}

    @property
    def ungraphed(self) -> str | None:
        """Which experts a row takes, no graph here can say."""
        return "mixes experts" if self.experts else None

    def weights(self, layer: Any) -> int:
        """Of experts those that a row takes."""
        if not self.experts:
            return super().weights(layer)
        held = int(sum(weight.numel() for weight in layer.experts.parameters()))
        taken, whole = int(layer.config.top_k_experts), int(layer.config.num_experts)
        return super().weights(layer) - held + held * taken // whole

    def decoding(self, layer: int) -> Decoding | None:
        """Its own arithmetic: transformers' layers pass keys on to each other."""
        del layer
        return _decoded


def _decoded(layer: Any, rows: Any, attention: Attention) -> Any:
    own, entered = layer.self_attn, layer.input_layernorm(rows)

    def heads(made: Any) -> Any:
        return made.unflatten(-1, (-1, own.head_dim))

    query = attention.turned(own.q_norm(heads(own.q_proj(entered))))
    if own.is_kv_shared_layer:
        seen = attention.shared(query, own.scaling)
    else:
        key = heads(own.k_proj(entered))
        value = key if own.v_proj is None else heads(own.v_proj(entered))
        seen = attention.own(query, attention.turned(own.k_norm(key)), own.v_norm(value), own.scaling)
    rows = rows + layer.post_attention_layernorm(own.o_proj(seen.flatten(1)))
    made = layer.mlp(layer.pre_feedforward_layernorm(rows))
    if layer.enable_moe_block:
        _, weights, chosen = layer.router(rows)
        mixed = layer.experts(layer.pre_feedforward_layernorm_2(rows), chosen, weights)
        made = layer.post_feedforward_layernorm_1(made) + layer.post_feedforward_layernorm_2(mixed)
    rows = rows + layer.post_feedforward_layernorm(made)
    if layer.hidden_size_per_layer_input:
        gated = layer.act_fn(layer.per_layer_input_gate(rows)) * attention.given
        rows = rows + layer.post_per_layer_input_norm(layer.per_layer_projection(gated))
    return rows * layer.layer_scalar
