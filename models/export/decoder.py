"""Exporting the decoder as ONNX by onnxruntime-genai's model builder, with inputs made for binding in place.

    inputs_embeds                (1, n, width) float32   the rows to append
    past_key_values.L.key/value  (1, kv_heads, past, head_dim) float32
    seqlens_k                    (1,) int32              tokens in the cache afterwards, less one
    total_sequence_length        () int32                tokens in the cache afterwards
    wanted                       (k,) int64              which of the n rows get logits
    -> logits                    (1, k, vocabulary) float32
    -> present.L.key/value       as past: may be the same memory, if that holds the whole context

The builder's own graph takes an attention mask, whose shape changes at every step, and computes logits of every row.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from transformers import LlamaForCausalLM

from cutline.errors import BundleError
from cutline.models.bundle import DecoderSpec, Precision
from cutline.models.export.quiet import quiet

_TYPES = {"fp32": onnx_ir.DataType.FLOAT, "int8": onnx_ir.DataType.INT8, "int4": onnx_ir.DataType.INT4}
# Of the logits' spread. A wrong graph is off by 1.4, that of unrelated logits.
TOLERANCES = {"fp32": 1e-4, "int8": 0.25, "int4": 0.9}


def export_decoder(model: Any, spec: DecoderSpec, path: Path, precision: Precision) -> float:
    """Write the decoder of `model` (a SmolVLMForConditionalGeneration, fp32) to `path`; returns its error.

    The error is the root mean square difference from torch's logits on seeded rows, as a share of their spread.
    Raises BundleError when it is beyond the precision's tolerance.
    """
    with quiet():
        _build(model, path, precision)
    _rewire(path)
    error = _difference(model, spec, path)
    allowed = TOLERANCES[precision]
    if not error <= allowed:
        raise BundleError(f"the exported {precision} decoder differs from torch's by {error:.1e} (allowed {allowed})")
    return error


def _build(model: Any, path: Path, precision: Precision) -> None:
    from onnxruntime_genai.models.builders.llama import LlamaModel  # here, because it configures logging

    config = model.config.text_config
    config.architectures = ["LlamaForCausalLM"]
    with torch.device("meta"):
        decoder = LlamaForCausalLM(config)
    decoder.model, decoder.lm_head = model.model.text_model, model.lm_head
    options = {
        "filename": path.name,
        "exclude_embeds": True,
        "shared_embeddings": False,
        "accuracy_level": 4,  # int8 arithmetic; level 0 is some 80 times slower with int8 weights
    }
    with tempfile.TemporaryDirectory() as cache:
        builder = LlamaModel(config, onnx_ir.DataType.FLOAT, _TYPES[precision], "cpu", cache, options)
        builder.load_weights = lambda _: decoder  # the weights at hand, instead of a folder with a tokenizer
        builder.make_model("")
        builder.save_model(str(path.parent))


def _rewire(path: Path) -> None:
    """Replace the mask by the lengths computed from it, and take logits of the rows in `wanted` alone."""
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    lengths = {"seqlens_k": 5, "total_sequence_length": 6}  # inputs of GroupQueryAttention
    for node in graph.node:
        if node.op_type == "GroupQueryAttention":
            for name, place in lengths.items():
                node.input[place] = name
    head = next(index for index, node in enumerate(graph.node) if "logits" in node.output)
    chosen = helper.make_node(
        "Gather", [graph.node[head].input[0], "wanted"], ["/lm_head/wanted"], name="/lm_head/Gather", axis=1
    )
    graph.node[head].input[0] = "/lm_head/wanted"
    kept = [*graph.node[:head], chosen, *graph.node[head:]]
    while True:  # the mask's nodes, from the last to the first
        used = {name for node in kept for name in node.input} | {value.name for value in graph.output}
        needed = [node for node in kept if used.intersection(node.output)]
        if len(needed) == len(kept):
            break
        kept = needed
    inputs = [value for value in graph.input if value.name != "attention_mask"]
    inputs += [
        helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, ["batch_size"]),
        helper.make_tensor_value_info("total_sequence_length", TensorProto.INT32, []),
        helper.make_tensor_value_info("wanted", TensorProto.INT64, ["wanted_rows"]),
    ]
    (logits,) = (value for value in graph.output if value.name == "logits")
    logits.type.tensor_type.shape.dim[1].dim_param = "wanted_rows"
    del graph.node[:], graph.input[:]
    graph.node.extend(kept)
    graph.input.extend(inputs)
    del graph.value_info[:]  # shapes of values in between, some of them gone
    model.producer_version = ""  # the builder's holds the commit of whatever git repository it ran in
    path.write_bytes(model.SerializeToString())


def _difference(model: Any, spec: DecoderSpec, path: Path) -> float:
    """Of the logits of a prompt of seeded tokens."""
    length = min(48, spec.context)
    ids = torch.randint(spec.vocabulary, (1, length), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        rows = model.get_input_embeddings()(ids)
        expected = model.lm_head(model.model.text_model(inputs_embeds=rows, use_cache=False).last_hidden_state).numpy()
    feed: dict[str, NDArray[Any]] = {
        "inputs_embeds": rows.numpy(),
        "seqlens_k": np.array([length - 1], np.int32),
        "total_sequence_length": np.array(length, np.int32),
        "wanted": np.arange(length),
    }
    empty = np.empty((1, spec.kv_heads, 0, spec.head_dim), np.float32)
    for layer in range(spec.layers):
        feed |= {f"past_key_values.{layer}.{kind}": empty for kind in ("key", "value")}
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], feed)
    return float(np.sqrt(np.mean((logits - expected) ** 2)) / expected.std())
