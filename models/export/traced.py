"""Exports a decoder that onnxruntime-genai's builder does not know: traced from what the family runs on a worker.

The graph has the inputs and outputs of `cutline.models.export.decoder`, and `places` (n,) int64 where rows are told
their places as they enter. Attention is ONNX Runtime's GroupQueryAttention, which sees what a bias says; layers that
read the keys of an earlier one have plain products.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx.external_data_helper import convert_model_to_external_data
from torch import Tensor, nn

from cutline.models.bundle import DecoderSpec, Precision
from cutline.models.export.graphs import made_by, part_of, quantized, without_notes
from cutline.models.export.quiet import quiet
from cutline.models.families import Family
from cutline.models.families.family import PLACES, bias_name
from cutline.models.families.layer_state import SharedKeys, keys_in_graph
from cutline.models.families.parts import rotate

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
        named, family = dict(zip(self._names, given, strict=True)), self._family
        entering, own = named["inputs_embeds"][0].tensor_split([self._spec.width], 1)
        kept: dict[int, list[Tensor]] = {}
        inputs = family.give(self._made.giving[1:], own, entering) if family.layer_inputs else None
        rows, boundaries = entering, list[Tensor]()
        if family.places_rows:
            rows = family.placed(self._made.placing, rows, named[PLACES])
        for index, module in enumerate(self._made.layers):
            decoding = family.decoding(index)
            assert decoding is not None
            attention = _Attention(family, self._spec, index, named, kept)
            attention.given = None if inputs is None else inputs[:, index]
            rows = decoding(module, rows, attention)
            beside = [] if inputs is None or index + 1 == self._spec.layers else [entering]
            boundaries.append(torch.cat([rows, *beside], 1)[None] if beside else rows[None])
        logits = self._made.capped(self._made.chosen(rows[named["wanted"]]))
        return (logits[None], *boundaries, *chain.from_iterable(kept.values()))


class _Attention:
    """What the layer of an `index` attends with in a graph, whose inputs are `named`: an `Attention`.

    What layers have `kept` so far, keys and values by layer, gets its own.
    """

    def __init__(
        self, family: Family, spec: DecoderSpec, index: int, named: dict[str, Tensor], kept: dict[int, list[Tensor]]
    ) -> None:
        self._family, self._spec, self._index, self._named, self._kept = family, spec, index, named, kept
        self._bias = named[bias_name(family.sight(index))]
        self.given: Tensor | None = None

    def turned(self, rows: Tensor) -> Tensor:
        """See `Attention.turned`."""
        name = self._family.rotary(self._index)
        cos, sin = (self._named[of if name is None else f"{of}.{name}"][:, None] for of in ("cos", "sin"))
        made: Tensor = rotate(rows, cos, sin, torch.cat)
        return made

    def shared(self, query: Tensor, scale: float) -> Tensor:
        """See `Attention.shared`."""
        kept = self._family.keeps(self._index)
        assert isinstance(kept, SharedKeys)
        # Of what may hold the whole context: as far as it is filled.
        filled = torch.arange(self._bias.shape[-1])
        key, value = (held[0].index_select(1, filled) for held in self._kept[kept.layer])
        heads = len(key)
        grouped = query.unflatten(1, (heads, -1)).permute(1, 2, 0, 3)  # (heads of keys, that share one, n, width)
        scores = (grouped.flatten(1, 2) @ key.transpose(1, 2)).unflatten(1, grouped.shape[1:3]) * scale + self._bias
        made: Tensor = (scores.softmax(-1).flatten(1, 2) @ value).unflatten(1, grouped.shape[1:3])
        return made.permute(2, 0, 1, 3).flatten(1, 2)

    def own(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `Attention.own`."""
        heads = key.shape[1]
        query, key, value = (part.flatten(1)[None] for part in (query, key, value))
        past = [self._named[f"past_key_values.{self._index}.{of}"] for of in ("key", "value")]
        lengths = self._named["seqlens_k"], self._named["total_sequence_length"]
        bias = self._bias
        made = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            (query, key, value, *past, *lengths, None, None, None, bias),
            {"num_heads": self._spec.heads, "kv_num_heads": heads, "scale": scale, "causal": 0},
            dtypes=[query.dtype] * 3,
            shapes=[query.shape, past[0].shape, past[1].shape],
            version=1,
        )
        self._kept[self._index] = [made[1], made[2]]
        seen: Tensor = made[0][0].unflatten(-1, (self._spec.heads, -1))
        return seen

    def across(self, query: Tensor, scale: float, made: object) -> tuple[Tensor, Tensor]:
        """Not in a graph: families whose layers attend to pictures are exported without their decoder."""
        raise NotImplementedError


def is_traced(family: Family, spec: DecoderSpec) -> bool:
    """Whether a family runs all layers of its decoder itself."""
    return family.ungraphed is None and all(family.decoding(index) is not None for index in range(spec.layers))


def traced(
    model: Any, family: Family, spec: DecoderSpec, path: Path, precision: Precision, *, head: bool
) -> onnx.ModelProto:
    """The graph of the decoder of the fp32 `model`, at `path`; its weights are written to `path` plus `.data`.

    With the `head` it gives `logits`; without, the boundary at every cut, by the cut's name.
    """
    inputs, dynamic = _example(family, spec)
    cuts = [*(f"decoder.{index}" for index in range(1, spec.layers)), "head"]
    caches = list(keys_in_graph([family.keeps(layer) for layer in range(spec.layers)]).values())
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
    whole = without_notes(made_by(program))
    for value in whole.graph.output:
        if value.name in caches:  # what is kept may be longer than what was
            value.type.tensor_type.shape.dim[2].dim_param = "kept_length"
    graph = quantized(_part(whole, [*(["logits"] if head else cuts), *caches], family), precision)
    weights = path.with_name(f"{path.name}.data")
    convert_model_to_external_data(graph, location=weights.name, size_threshold=1024)
    onnx.save_model(graph, path)
    weights.chmod(0o644)  # onnx makes files that only their owner may read
    return graph


def traced_prefix(graph: onnx.ModelProto, family: Family, cut: str, layers: int) -> onnx.ModelProto:
    """Of a graph without the head the first `layers`, up to the boundary at `cut`."""
    presents = keys_in_graph([family.keeps(layer) for layer in range(layers)]).values()
    prefix = _part(graph, [cut, *presents], family)
    for node in prefix.graph.node:
        node.output[:] = [BOUNDARY if name == cut else name for name in node.output]
    prefix.graph.output[0].name = BOUNDARY
    return prefix


def _example(family: Family, spec: DecoderSpec) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The inputs of a run, and which of their sizes may be others."""
    free = torch.export.Dim.DYNAMIC
    inputs = {
        "inputs_embeds": torch.randn(1, _LENGTH, spec.rows_width(family)),
        "seqlens_k": torch.tensor([_TOTAL - 1], dtype=torch.int32),
        "total_sequence_length": torch.tensor(_TOTAL, dtype=torch.int32),
        "wanted": torch.arange(2),
    }
    dynamic: dict[str, Any] = dict.fromkeys(inputs) | {"inputs_embeds": {1: free}, "wanted": {0: free}}
    if family.places_rows:
        inputs[PLACES], dynamic[PLACES] = torch.arange(_LENGTH), {0: free}
    for name in family.biases(spec.layers):
        inputs[name], dynamic[name] = torch.zeros(1, 1, _LENGTH, _TOTAL), {2: free, 3: free}
    for name, rotated in family.rotations(np.zeros((family.axes, _LENGTH), np.int64)).items():
        inputs[name], dynamic[name] = torch.from_numpy(rotated), {0: free}
    for name, shape in spec.key_shapes([family.keeps(layer) for layer in range(spec.layers)], _TOTAL).items():
        inputs[name], dynamic[name] = torch.zeros(shape), {2: free}
    return inputs, dynamic


def _part(graph: onnx.ModelProto, outputs: Sequence[str], family: Family) -> onnx.ModelProto:
    """What of a graph makes these `outputs`; it is told all rotations."""
    values = {value.name: value for value in graph.graph.output}
    told = family.rotations(np.zeros((family.axes, 1), np.int64))
    return part_of(graph, graph.graph.node, [values[name] for name in outputs], told=told)
