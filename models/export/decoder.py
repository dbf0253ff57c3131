"""Exports the decoder as ONNX with onnxruntime-genai's model builder, with inputs that can be bound in place.

    inputs_embeds                (1, n, rows_width) float32        the rows to append: see `DecoderSpec`
    past_key_values.L.key/value  (1, kv_heads, past, head_dim) float32
    past.L.conv/recurrent        (1, ...)                of a layer that keeps no keys: see `LayerState`
    seqlens_k                    (1,) int32              tokens in the cache after the run, minus one
    total_sequence_length        () int32                tokens in the cache after the run
    cos, sin                     (n, rotated / 2)       of a family that has no table of them: `Family.rotations`
    bias.W.B                     (1, 1, n, total)        of a family whose rows do not see all before them: `Sight.bias`
    wanted                       (k,) int64              which of the n rows get logits
    -> logits                    (1, k, vocabulary) float32
    -> present.L.key/value       as past; may share its memory if that holds the whole context

The builder's own graph takes an attention mask, whose shape changes at every step, and computes logits of every row.
Streams beside the residual one (`Family.taps`) are split off, and added to it after the first layers.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from transformers import LlamaConfig, LlamaForCausalLM

from cutline.errors import BundleError
from cutline.models.bundle import DecoderSpec, Precision
from cutline.models.export.graphs import needed, product_alone, products, replace_product
from cutline.models.export.quiet import quiet
from cutline.models.export.traced import is_traced, traced
from cutline.models.families import Family
from cutline.models.families.family import PLACES, bias_name
from cutline.models.families.layer_state import states_in_graph
from cutline.models.families.parts import Modules
from cutline.models.sight import Block

# The classes of onnxruntime-genai's builder, by transformers' kind of decoder. That of a Llama takes biases too.
BUILDERS = {
    **dict.fromkeys(("llama", "qwen2", "qwen2_vl_text", "qwen2_5_vl_text"), ("llama", "LlamaModel")),
    **dict.fromkeys(("qwen3", "qwen3_vl_text"), ("qwen", "Qwen3Model")),
    "qwen3_5_text": ("qwen", "Qwen35TextModel"),
    "lfm2": ("lfm2", "LFM2Model"),
    "gemma": ("gemma", "GemmaModel"),
    "gemma2": ("gemma", "Gemma2Model"),
    "gemma3_text": ("gemma", "Gemma3Model"),
}
_GEMMA = ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "layer_types", "sliding_window")
_LINEAR = ("key_head_dim", "value_head_dim", "num_key_heads", "num_value_heads", "conv_kernel_dim")
_BLOCK = ("auto_adjust_ff_dim", "ffn_dim_multiplier", "multiple_of")
# Settings that the builder reads of some kinds, beside those that it reads of all.
_SETTINGS = {
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA),
    "lfm2": ("layer_types", "norm_eps", "conv_L_cache", *(f"block_{name}" for name in _BLOCK)),
    "qwen3_5_text": ("layer_types", *(f"linear_{name}" for name in _LINEAR)),
}
ROWS = "inputs_embeds"
_WINDOWED = ("local_window_size", "sliding_window_cache", "causal")  # what a bias takes the place of
_BIAS = 10  # among the inputs of GroupQueryAttention
_ROTATIONS = ("cos", "sin")
_TYPES = {"fp32": onnx_ir.DataType.FLOAT, "int8": onnx_ir.DataType.INT8, "int4": onnx_ir.DataType.INT4}
# As shares of the logits' standard deviation. A wrong graph has 1.4, the difference of unrelated logits.
TOLERANCES = {"fp32": 1e-4, "int8": 0.25, "int4": 0.9}


def export_decoder(model: Any, family: Family, spec: DecoderSpec, path: Path, precision: Precision) -> float:
    """Write the decoder of the fp32 `model` to `path`; returns its error.

    The error is the root mean square difference from torch's logits on seeded rows, as a share of their standard
    deviation. Raises BundleError if it exceeds the precision's tolerance.
    """
    if is_traced(family, spec):
        graph = traced(model, family, spec, path, precision, head=True)
    else:
        graph = build(model, family, spec, path, precision, head=True)
        _choose_rows(graph)
    path.write_bytes(graph.SerializeToString())
    error = _difference(model, family, spec, path)
    allowed = TOLERANCES[precision]
    if not error <= allowed:
        raise BundleError(f"the exported {precision} decoder differs from torch's by {error:.1e} (allowed {allowed})")
    return error


def build(
    model: Any, family: Family, spec: DecoderSpec, path: Path, precision: Precision, *, head: bool
) -> onnx.ModelProto:
    """The graph of the decoder of `model`, with or without the `head`; its weights are written to `path` plus `.data`.

    The builder's own graph is left at `path`.
    """
    with quiet():
        _build(model, family, spec, path, precision, head=head)
    graph = onnx.load(path, load_external_data=False)
    _bind_lengths(graph)
    if _is_told_rotations(family):
        _bind_rotations(graph, family)
    if family.taps:
        _add_streams(graph, len(family.taps), spec)
    if family.biases(spec.layers):
        _bind_biases(graph, family, spec)
    return graph


def _build(model: Any, family: Family, spec: DecoderSpec, path: Path, precision: Precision, *, head: bool) -> None:
    module, name = BUILDERS[model.config.text_config.model_type]
    # Not at the top, as the import configures logging.
    base = getattr(import_module(f"onnxruntime_genai.models.builders.{module}"), name)
    own = family.parts.modules(model).decoder
    # Where there are two tables, the builder makes that of layers without a window first.
    layers = sorted(range(spec.layers), key=lambda layer: family.sight(layer).window)
    names = iter(dict.fromkeys(map(family.rotary, layers)))

    class EachAlone(base):  # type: ignore[misc, valid-type]
        """Quantizes one product after another, where the builder first writes all weights as float32, in memory."""

        model: onnx_ir.Model

        def to_nbits(self) -> onnx_ir.Model:
            whole = self.model
            for node, weight in products(whole):
                self.model = product_alone(node, weight, whole)
                replace_product(node, weight, super().to_nbits(), whole)
            self.model = whole
            return whole

    class Turned(EachAlone):
        """Takes the rotary tables from transformers' own module, whatever the rope type."""

        def make_rotary_embedding_caches_from_scratch(self) -> tuple[torch.Tensor, torch.Tensor]:
            name = next(names, None)
            more = () if name is None else (name,)
            cos, sin = own.rotary_emb(own.embed_tokens.weight, torch.arange(spec.context)[None], *more)
            return cos[0].detach(), sin[0].detach()

    class Unfused(EachAlone):
        """Rotates queries and keys before attention, as nodes of their own."""

        def is_fused_rope_supported(self) -> bool:
            return False

        def is_packed_matmul_supported(self) -> bool:
            return False

    config = _as_llama(model.config.text_config, family, spec)
    with torch.device("meta"):
        decoder = LlamaForCausalLM(config)
    decoder.model, decoder.lm_head = own, model.lm_head
    options = {
        "filename": path.name,
        "exclude_embeds": True,
        "exclude_lm_head": not head,
        "shared_embeddings": False,
        "window_kv_cache": False,  # a ring of rows cannot be rolled back
        "accuracy_level": 4,  # int8 arithmetic; level 0 is about 80 times slower with int8 weights
    }
    kind = Unfused if _is_told_rotations(family) else Turned
    with tempfile.TemporaryDirectory() as cache:
        builder = kind(config, onnx_ir.DataType.FLOAT, _TYPES[precision], "cpu", cache, options)
        builder.load_weights = lambda _: decoder  # by default it loads them from a folder with a tokenizer
        builder.make_model("")
        builder.save_model(str(path.parent))


def _as_llama(text: Any, family: Family, spec: DecoderSpec) -> LlamaConfig:
    """The config of a decoder of the config `text` as the builder reads it, whatever its kind."""
    copied = ("intermediate_size", "bos_token_id", "eos_token_id", "pad_token_id")
    named = (*copied, *_SETTINGS.get(text.model_type, ()))
    turning = text.rope_parameters.get("full_attention", text.rope_parameters)
    made: Any = LlamaConfig  # which takes settings of any name
    config: LlamaConfig = made(
        architectures=["LlamaForCausalLM"],
        hidden_size=spec.width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        vocab_size=spec.vocabulary,
        rms_norm_eps=getattr(text, "rms_norm_eps", None) or text.norm_eps,
        # The size of the graph's rotary table. If rotations are inputs, the table is dropped: the builder's minimum.
        max_position_embeddings=2 if _is_told_rotations(family) else spec.context,
        hidden_act=getattr(text, "hidden_activation", None) or getattr(text, "hidden_act", "silu"),
        # For the builder's own tables, which `Turned` replaces.
        rope_parameters={**turning, "rope_type": "default"},
        rope_local_base_freq=turning["rope_theta"],
        **{name: getattr(text, name) for name in named},
    )
    return config


def _is_told_rotations(family: Family) -> bool:
    """Whether rotations are inputs of the graph, as it has no table of them."""
    return bool(family.rotations(np.zeros((family.axes, 1), np.int64)))


def _bind_rotations(model: onnx.ModelProto, family: Family) -> None:
    """Make the rotations inputs, one for each row, in place of a table indexed by position."""
    graph = model.graph
    for node in graph.node:
        if node.op_type in ("RotaryEmbedding", "MRotaryEmbedding"):
            node.op_type = "RotaryEmbedding"
            node.input[1:] = ["first", *_ROTATIONS]
            kept = [attribute for attribute in node.attribute if not attribute.name.startswith("mrope")]
            del node.attribute[:]
            node.attribute.extend(kept)
    graph.initializer.append(helper.make_tensor("first", TensorProto.INT64, [1], [0]))
    used = {name for node in graph.node for name in node.input}
    weights = [weight for weight in graph.initializer if weight.name in used]
    inputs = [value for value in graph.input if value.name in used]
    inputs += [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["sequence_length", rotated.shape[1]])
        for name, rotated in family.rotations(np.zeros((family.axes, 1), np.int64)).items()
    ]
    del graph.initializer[:], graph.input[:]
    graph.initializer.extend(weights)
    graph.input.extend(inputs)


def _bind_biases(model: onnx.ModelProto, family: Family, spec: DecoderSpec) -> None:
    """Have each layer's attention see what an input says, in place of all that stands before a row, or a window."""
    graph = model.graph
    attention = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    for layer, node in enumerate(attention):
        node.input.extend([""] * (_BIAS + 1 - len(node.input)))
        node.input[_BIAS] = bias_name(family.sight(layer))
        kept = [attribute for attribute in node.attribute if attribute.name not in _WINDOWED]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("causal", 0)])
    graph.input.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, "sequence_length", "total_length"])
        for name in family.biases(spec.layers)
    )


def _add_streams(model: onnx.ModelProto, count: int, spec: DecoderSpec) -> None:
    """Split the input rows, and add each of the `count` streams beside the residual one after its layer."""
    graph = model.graph
    for node in graph.node:
        node.input[:] = ["/streams/own" if name == ROWS else name for name in node.input]
    beside = [stream_name(index) for index in range(count)]
    sizes = helper.make_tensor("/streams/sizes", TensorProto.INT64, [1 + count], [spec.width] * (1 + count))
    graph.initializer.append(sizes)
    split = helper.make_node("Split", [ROWS, sizes.name], ["/streams/own", *beside], name="/streams/Split", axis=-1)
    norms = residual_norms(graph.node)
    nodes = [split]
    for node in graph.node:
        for index, stream in enumerate(beside):
            if node is norms[2 * index + 1]:  # which first adds what its layer's MLP made
                added = f"/streams/Add.{index}"
                nodes.append(helper.make_node("Add", [node.input[1], stream], [added], name=added))
                node.input[1] = added
        nodes.append(node)
    (rows,) = (value for value in graph.input if value.name == ROWS)
    rows.type.tensor_type.shape.dim[2].dim_value = (1 + count) * spec.width
    kept = [copy.deepcopy(node) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def stream_name(index: int) -> str:
    """The value of a graph that holds the stream that is added after layer `index`."""
    return f"/streams/beside.{index}"


def residual_norms(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The norms that first add to the residual stream: two a layer, after its attention and after its MLP."""
    return [node for node in nodes if node.op_type == "SkipSimplifiedLayerNormalization"]


def _bind_lengths(model: onnx.ModelProto) -> None:
    """Make the sequence lengths inputs, in place of the mask that they are computed from."""
    graph = model.graph
    lengths = {"seqlens_k": 5, "total_sequence_length": 6}  # inputs of GroupQueryAttention
    for node in graph.node:
        if node.op_type == "GroupQueryAttention":
            for name, index in lengths.items():
                node.input[index] = name
    inputs = [value for value in graph.input if value.name != "attention_mask"]
    inputs += [
        helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, ["batch_size"]),
        helper.make_tensor_value_info("total_sequence_length", TensorProto.INT32, []),
    ]
    kept = needed(graph.node, {value.name for value in graph.output})
    del graph.node[:], graph.input[:]
    graph.node.extend(kept)
    graph.input.extend(inputs)
    del graph.value_info[:]  # has shapes of removed values
    model.producer_version = ""  # the builder writes the commit of the git repository it runs in


def _choose_rows(model: onnx.ModelProto) -> None:
    """Compute logits of the rows in `wanted` only."""
    graph = model.graph
    head = next(index for index, node in enumerate(graph.node) if node.name.startswith("/lm_head/"))
    chosen = helper.make_node(
        "Gather", [graph.node[head].input[0], "wanted"], ["/lm_head/wanted"], name="/lm_head/Gather", axis=1
    )
    graph.node[head].input[0] = "/lm_head/wanted"
    graph.node.insert(head, chosen)
    graph.input.append(helper.make_tensor_value_info("wanted", TensorProto.INT64, ["wanted_rows"]))
    (logits,) = (value for value in graph.output if value.name == "logits")
    logits.type.tensor_type.shape.dim[1].dim_param = "wanted_rows"


def _difference(model: Any, family: Family, spec: DecoderSpec, path: Path) -> float:
    """The error of the graph's logits on a prompt of seeded tokens."""
    rows, positions = seeded_prompt(model, family, spec)
    with torch.inference_mode():
        logits = model.get_output_embeddings()(run_whole(model, family, rows, positions))
        expected = family.parts.modules(model).capped(logits).numpy()
    feed = whole_feed(rows.numpy(), positions, family, spec, spec.layers) | {"wanted": np.arange(rows.shape[1])}
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], feed)
    return spread_of(logits, expected)


def seeded_prompt(model: Any, family: Family, spec: DecoderSpec) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Rows (1, n, `rows_width`) of seeded tokens, and positions (axes, n) that differ on every axis."""
    length = min(48, spec.context)
    dice = torch.Generator().manual_seed(2)
    ids = torch.randint(spec.vocabulary, (1, length), generator=dice)
    with torch.inference_mode():
        rows = model.get_input_embeddings()(ids)
        beside = rows.std() * torch.randn(1, length, len(family.taps) * spec.width, generator=dice)
        if family.layer_inputs:
            beside = family.parts.modules(model).giving[0](ids)
    return torch.cat([rows, beside], -1), np.arange(length) * np.arange(1, family.axes + 1)[:, None]


def run_whole(model: Any, family: Family, rows: torch.Tensor, positions: NDArray[np.int64]) -> torch.Tensor:
    """transformers' own decoder: from rows (1, n, `rows_width`) to hidden states (1, n, width) after its norm."""
    made = family.parts.modules(model)
    width = made.embed.weight.shape[1]
    own, *beside = rows.split(width, -1)
    more: dict[str, Any] = {}
    if family.layer_inputs:
        more["per_layer_inputs"] = rows[..., width:].unflatten(-1, (len(made.layers), family.layer_inputs))
    elif beside:
        everywhere = torch.ones(own.shape[:2], dtype=torch.bool)
        more = {"visual_pos_masks": everywhere, "deepstack_visual_embeds": [stream[0] for stream in beside]}
    if family.biases(len(made.layers)):
        more["attention_mask"] = _masks(made, family, own.shape[1])
    ids = torch.from_numpy(family.as_ids(positions))
    own = own + 0  # some decoders add in place
    hidden: torch.Tensor = made.decoder(inputs_embeds=own, position_ids=ids, use_cache=False, **more).last_hidden_state
    return hidden


def _masks(made: Modules, family: Family, length: int) -> Any:
    """What rows of a seeded prompt see, by the type of the layer where transformers has types."""
    layers = range(len(made.layers))
    biases = [torch.from_numpy(family.sight(layer).bias(_blocks(length), 0, length)) for layer in layers]
    types = getattr(made.decoder.config, "layer_types", None)
    return biases[0] if types is None else dict(zip(types, biases, strict=True))


def _blocks(length: int) -> tuple[Block, ...]:
    """A block in the middle of a seeded prompt."""
    return ((length // 4, length // 2),)


def whole_feed(
    rows: NDArray[np.float32], positions: NDArray[np.int64], family: Family, spec: DecoderSpec, layers: int
) -> dict[str, NDArray[Any]]:
    """The inputs of a graph of `layers` layers for a whole prompt with an empty cache.

    `rows` (1, n, `rows_width`) are at `positions` (axes, n).
    """
    length = rows.shape[1]
    feed: dict[str, NDArray[Any]] = {
        ROWS: rows,
        "seqlens_k": np.array([length - 1], np.int32),
        "total_sequence_length": np.array(length, np.int32),
    }
    keeps = [family.keeps(layer) for layer in range(layers)]
    past = {name: np.empty(shape, np.float32) for name, shape in spec.key_shapes(keeps, 0).items()}
    past |= {f"past.{name}": np.zeros((1, *shape), np.float32) for name, shape in states_in_graph(keeps).items()}
    biases = {name: sight.bias(_blocks(length), 0, length) for name, sight in family.biases(layers).items()}
    places = {PLACES: positions[0]} if family.places_rows else {}
    return feed | past | family.rotations(positions) | biases | places


def spread_of(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The root mean square difference, as a share of the standard deviation of `expected`."""
    return float(np.sqrt(np.mean((found - expected) ** 2)) / expected.std())
