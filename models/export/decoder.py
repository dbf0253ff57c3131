"""Exports the decoder as ONNX with onnxruntime-genai's model builder, with inputs that can be bound in place.

    inputs_embeds                (1, n, width) float32   the rows to append
    past_key_values.L.key/value  (1, kv_heads, past, head_dim) float32
    seqlens_k                    (1,) int32              tokens in the cache after the run, minus one
    total_sequence_length        () int32                tokens in the cache after the run
    cos, sin                     (n, head_dim / 2)       of a family with several axes of positions: `Family.rotations`
    wanted                       (k,) int64              which of the n rows get logits
    -> logits                    (1, k, vocabulary) float32
    -> present.L.key/value       as past; may share its memory if that holds the whole context

The builder's own graph takes an attention mask, whose shape changes at every step, and computes logits of every row.
The graph is that of a Llama, maybe with biases: the families' decoders differ only in their rotary embeddings.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable
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
from cutline.models.export.quiet import quiet
from cutline.models.families import AnyFamily

_ROTATIONS = ("cos", "sin")
_TYPES = {"fp32": onnx_ir.DataType.FLOAT, "int8": onnx_ir.DataType.INT8, "int4": onnx_ir.DataType.INT4}
# As shares of the logits' standard deviation. A wrong graph has 1.4, the difference of unrelated logits.
TOLERANCES = {"fp32": 1e-4, "int8": 0.25, "int4": 0.9}


def export_decoder(model: Any, family: AnyFamily, spec: DecoderSpec, path: Path, precision: Precision) -> float:
    """Write the decoder of the fp32 `model` to `path`; returns its error.

    The error is the root mean square difference from torch's logits on seeded rows, as a share of their standard
    deviation. Raises BundleError if it exceeds the precision's tolerance.
    """
    graph = build(model, family, spec, path, precision, head=True)
    _choose_rows(graph)
    path.write_bytes(graph.SerializeToString())
    error = _difference(model, family, spec, path)
    allowed = TOLERANCES[precision]
    if not error <= allowed:
        raise BundleError(f"the exported {precision} decoder differs from torch's by {error:.1e} (allowed {allowed})")
    return error


def build(
    model: Any, family: AnyFamily, spec: DecoderSpec, path: Path, precision: Precision, *, head: bool
) -> onnx.ModelProto:
    """The graph of the decoder of `model`, with or without the `head`; its weights are written to `path` plus `.data`.

    The builder's own graph is left at `path`.
    """
    with quiet():
        _build(model, family, spec, path, precision, head=head)
    graph = onnx.load(path, load_external_data=False)
    _bind_lengths(graph)
    if family.axes > 1:
        _bind_rotations(graph, spec)
    return graph


def _build(model: Any, family: AnyFamily, spec: DecoderSpec, path: Path, precision: Precision, *, head: bool) -> None:
    from onnxruntime_genai.models.builders.llama import LlamaModel  # not at the top, as the import configures logging

    own = model.model.get_submodule(family.parts.decoder)

    class Turned(LlamaModel):  # type: ignore[misc]
        """Takes the rotary tables from transformers' own module, whatever the rope type."""

        def make_rotary_embedding_caches_from_scratch(self) -> tuple[torch.Tensor, torch.Tensor]:
            cos, sin = own.rotary_emb(own.norm.weight, torch.arange(spec.context)[None])
            return cos[0].detach(), sin[0].detach()

    class Unfused(LlamaModel):  # type: ignore[misc]
        """Rotates queries and keys before attention, as nodes of their own."""

        def is_fused_rope_supported(self) -> bool:
            return False

        def is_packed_matmul_supported(self) -> bool:
            return False

    config = _llama(model.config.text_config, family, spec)
    with torch.device("meta"):
        decoder = LlamaForCausalLM(config)
    decoder.model, decoder.lm_head = own, model.lm_head
    options = {
        "filename": path.name,
        "exclude_embeds": True,
        "exclude_lm_head": not head,
        "shared_embeddings": False,
        "accuracy_level": 4,  # int8 arithmetic; level 0 is about 80 times slower with int8 weights
    }
    kind = Turned if family.axes == 1 else Unfused
    with tempfile.TemporaryDirectory() as cache:
        builder = kind(config, onnx_ir.DataType.FLOAT, _TYPES[precision], "cpu", cache, options)
        builder.load_weights = lambda _: decoder  # by default it loads them from a folder with a tokenizer
        builder.make_model("")
        builder.save_model(str(path.parent))


def _llama(text: Any, family: AnyFamily, spec: DecoderSpec) -> LlamaConfig:
    """The config of the Llama that equals a decoder of the config `text`."""
    copied = ("hidden_act", "intermediate_size", "rms_norm_eps", "bos_token_id", "eos_token_id", "pad_token_id")
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=spec.width,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        vocab_size=spec.vocabulary,
        # The size of the graph's rotary table. If rotations are inputs, the table is dropped: the builder's minimum.
        max_position_embeddings=spec.context if family.axes == 1 else 2,
        # For the builder's own table, which `Turned` replaces.
        rope_parameters={"rope_type": "default", "rope_theta": text.rope_parameters["rope_theta"]},
        **{name: getattr(text, name) for name in copied},
    )


def _bind_rotations(model: onnx.ModelProto, spec: DecoderSpec) -> None:
    """Make the rotations inputs, one for each row, in place of a table indexed by position."""
    graph = model.graph
    for node in graph.node:
        if node.op_type == "RotaryEmbedding":
            node.input[1:] = ["first", *_ROTATIONS]
    graph.initializer.append(helper.make_tensor("first", TensorProto.INT64, [1], [0]))
    used = {name for node in graph.node for name in node.input}
    weights = [weight for weight in graph.initializer if weight.name in used]
    inputs = [value for value in graph.input if value.name in used]
    inputs += [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["sequence_length", spec.head_dim // 2])
        for name in _ROTATIONS
    ]
    del graph.initializer[:], graph.input[:]
    graph.initializer.extend(weights)
    graph.input.extend(inputs)


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


def needed(nodes: Iterable[onnx.NodeProto], outputs: Collection[str]) -> list[onnx.NodeProto]:
    """Those of the topologically sorted `nodes` that `outputs` depend on."""
    used, kept = set(outputs), []
    for node in reversed(list(nodes)):
        if used.intersection(node.output):
            used.update(node.input)
            kept.append(node)
    return kept[::-1]


def _choose_rows(model: onnx.ModelProto) -> None:
    """Compute logits of the rows in `wanted` only."""
    graph = model.graph
    head = next(index for index, node in enumerate(graph.node) if "logits" in node.output)
    chosen = helper.make_node(
        "Gather", [graph.node[head].input[0], "wanted"], ["/lm_head/wanted"], name="/lm_head/Gather", axis=1
    )
    graph.node[head].input[0] = "/lm_head/wanted"
    graph.node.insert(head, chosen)
    graph.input.append(helper.make_tensor_value_info("wanted", TensorProto.INT64, ["wanted_rows"]))
    (logits,) = (value for value in graph.output if value.name == "logits")
    logits.type.tensor_type.shape.dim[1].dim_param = "wanted_rows"


def _difference(model: Any, family: AnyFamily, spec: DecoderSpec, path: Path) -> float:
    """The error of the graph's logits on a prompt of seeded tokens."""
    rows, positions = seeded_prompt(model, family, spec)
    decoder = model.model.get_submodule(family.parts.decoder)
    with torch.inference_mode():
        ids = torch.from_numpy(family.as_ids(positions))
        hidden = decoder(inputs_embeds=rows, position_ids=ids, use_cache=False).last_hidden_state
        expected = model.lm_head(hidden).numpy()
    feed = whole_feed(rows.numpy(), positions, family, spec, spec.layers) | {"wanted": np.arange(rows.shape[1])}
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], feed)
    return spread_of(logits, expected)


def seeded_prompt(model: Any, family: AnyFamily, spec: DecoderSpec) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Rows (1, n, width) of seeded tokens, and positions (axes, n) that differ on every axis."""
    length = min(48, spec.context)
    ids = torch.randint(spec.vocabulary, (1, length), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        rows = model.get_input_embeddings()(ids)
    return rows, np.arange(length) * np.arange(1, family.axes + 1)[:, None]


def whole_feed(
    rows: NDArray[np.float32], positions: NDArray[np.int64], family: AnyFamily, spec: DecoderSpec, layers: int
) -> dict[str, NDArray[Any]]:
    """The inputs of a graph of `layers` layers for a whole prompt with an empty cache.

    `rows` (1, n, width) are at `positions` (axes, n).
    """
    length = rows.shape[1]
    feed: dict[str, NDArray[Any]] = {
        "inputs_embeds": rows,
        "seqlens_k": np.array([length - 1], np.int32),
        "total_sequence_length": np.array(length, np.int32),
    }
    empty = np.empty((1, spec.kv_heads, 0, spec.head_dim), np.float32)
    past = {f"past_key_values.{layer}.{kind}": empty for layer in range(layers) for kind in ("key", "value")}
    return feed | past | family.rotations(positions)


def spread_of(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The root mean square difference, as a share of the standard deviation of `expected`."""
    return float(np.sqrt(np.mean((found - expected) ** 2)) / expected.std())
