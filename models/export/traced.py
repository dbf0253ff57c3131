"""Exports a decoder that onnxruntime-genai's builder does not know: traced from what the family runs on a worker.

The graph has the inputs and outputs of `cutline.models.export.decoder`, and `places` (n,) int64 where rows are told
their places as they enter. Attention is ONNX Runtime's GroupQueryAttention, which sees what a bias says.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx.external_data_helper import convert_model_to_external_data
from torch import Tensor, nn

from cutline.models.bundle import DecoderSpec, Precision
from cutline.models.export.graphs import part_of, quantized, without_notes
from cutline.models.export.quiet import quiet
from cutline.models.families import Family
from cutline.models.families.family import PLACES, bias_name

BOUNDARY = "boundary"
_LENGTH = 5  # rows of the example that is traced
_TOTAL = 16  # positions of its caches
_OPSET = 21


class DecoderGraph(nn.Module):
    """All layers of a family's decoder, and its head, as one graph of plain tensors."""

    def __init__(self, family: Family, model: Any, spec: DecoderSpec, names: Sequence[str]) -> None:
        """`names` are those of the inputs."""
        super().__init__()
        self._family, self._spec, self._names = family, spec, names
        self._made = family.parts.modules(model)
        self.model = model  # whose weights these are

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """The logits, the boundary at every cut, and what each layer keeps."""
        named = dict(zip(self._names, given, strict=True))
        rows, boundaries, kept = named["inputs_embeds"][0], list[Tensor](), list[Tensor]()
        if self._family.places_rows:
            rows = self._family.placed(self._made.placing, rows, named[PLACES])
        for index, module in enumerate(self._made.layers):
            decoding = self._family.decoding(index)
            assert decoding is not None

            attention = _Attention(self._spec, index, bias_name(self._family.sight(index)), named)
            rows = decoding(module, rows, attention)
            kept.extend(attention.kept)
            boundaries.append(rows[None])
        return (self._made.chosen(rows[named["wanted"]])[None], *boundaries, *kept)


class _Attention:
    """What the layer of an `index` attends with in a graph, whose inputs are `named`: an `Attention`."""

    def __init__(self, spec: DecoderSpec, index: int, bias: str, named: dict[str, Tensor]) -> None:
        self._spec, self._index, self._bias, self._named = spec, index, bias, named
        self.kept: list[Tensor] = []

    def own(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `Attention.own`."""
        query, key, value = (part.flatten(1)[None] for part in (query, key, value))
        past = [self._named[f"past_key_values.{self._index}.{of}"] for of in ("key", "value")]
        lengths = self._named["seqlens_k"], self._named["total_sequence_length"]
        bias = self._named[self._bias]
        made = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            (query, key, value, *past, *lengths, None, None, None, bias),
            {"num_heads": self._spec.heads, "kv_num_heads": self._spec.kv_heads, "scale": scale, "causal": 0},
            dtypes=[query.dtype] * 3,
            shapes=[query.shape, past[0].shape, past[1].shape],
            version=1,
        )
        self.kept = [made[1], made[2]]
        seen: Tensor = made[0][0].unflatten(-1, (self._spec.heads, -1))
        return seen

    def across(self, query: Tensor, scale: float, made: object) -> tuple[Tensor, Tensor]:
        """Not in a graph: families whose layers attend to pictures are exported without their decoder."""
        raise NotImplementedError


def is_traced(family: Family, spec: DecoderSpec) -> bool:
    """Whether a family runs all layers of its decoder itself."""
    return all(family.decoding(index) is not None for index in range(spec.layers))


def traced(
    model: Any, family: Family, spec: DecoderSpec, path: Path, precision: Precision, *, head: bool
) -> onnx.ModelProto:
    """The graph of the decoder of the fp32 `model`, at `path`; its weights are written to `path` plus `.data`.

    With the `head` it gives `logits`; without, the boundary at every cut, by the cut's name.
    """
    inputs, dynamic = _example(family, spec)
    cuts = [*(f"decoder.{index}" for index in range(1, spec.layers)), "head"]
    caches = [f"present.{layer}.{of}" for layer in range(spec.layers) for of in ("key", "value")]
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            DecoderGraph(family, model, spec, list(inputs)).eval(),
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=["logits", *cuts, *caches],
            dynamic_shapes=(tuple(dynamic[name] for name in inputs),),
            opset_version=_OPSET,
            dynamo=True,
        )
    assert program is not None  # only without dynamo it is None
    whole = without_notes(program.model_proto)
    for value in whole.graph.output:
        if value.name in caches:  # what is kept may be longer than what was
            value.type.tensor_type.shape.dim[2].dim_param = "kept_length"
    graph = quantized(_part(whole, [*(["logits"] if head else cuts), *caches]), precision)
    weights = path.with_name(f"{path.name}.data")
    convert_model_to_external_data(graph, location=weights.name, size_threshold=1024)
    onnx.save_model(graph, path)
    weights.chmod(0o644)  # onnx makes files that only their owner may read
    return graph


def traced_prefix(graph: onnx.ModelProto, cut: str, layers: int) -> onnx.ModelProto:
    """Of a graph without the head the first `layers`, up to the boundary at `cut`."""
    prefix = _part(graph, [cut, *(f"present.{layer}.{of}" for layer in range(layers) for of in ("key", "value"))])
    for node in prefix.graph.node:
        node.output[:] = [BOUNDARY if name == cut else name for name in node.output]
    prefix.graph.output[0].name = BOUNDARY
    return prefix


def _example(family: Family, spec: DecoderSpec) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inputs of a run, and which of their sizes may be others."""
    free = torch.export.Dim.DYNAMIC
    inputs = {
        "inputs_embeds": torch.randn(1, _LENGTH, spec.width),
        "seqlens_k": torch.tensor([_TOTAL - 1], dtype=torch.int32),
        "total_sequence_length": torch.tensor(_TOTAL, dtype=torch.int32),
        "wanted": torch.arange(2),
    }
    dynamic: dict[str, Any] = dict.fromkeys(inputs) | {"inputs_embeds": {1: free}, "wanted": {0: free}}
    if family.places_rows:
        inputs[PLACES], dynamic[PLACES] = torch.arange(_LENGTH), {0: free}
    for name in family.biases(spec.layers):
        inputs[name], dynamic[name] = torch.zeros(1, 1, _LENGTH, _TOTAL), {2: free, 3: free}
    for layer in range(spec.layers):
        for of in ("key", "value"):
            name = f"past_key_values.{layer}.{of}"
            inputs[name], dynamic[name] = torch.zeros(1, spec.kv_heads, _TOTAL, spec.head_dim), {2: free}
    return inputs, dynamic


def _part(graph: onnx.ModelProto, outputs: Sequence[str]) -> onnx.ModelProto:
    """What of a graph makes these `outputs`."""
    values = {value.name: value for value in graph.graph.output}
    return part_of(graph, graph.graph.node, [values[name] for name in outputs])
