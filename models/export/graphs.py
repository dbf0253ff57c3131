"""What exporters do with graphs, whatever made them: notes taken out, parts cut off, weights quantized."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import onnx
import torch
from onnx import helper

from cutline.models.bundle import Precision
from cutline.models.export.quiet import quiet

_BITS = {"int8": 8, "int4": 4}


def needed(nodes: Iterable[onnx.NodeProto], outputs: Collection[str]) -> list[onnx.NodeProto]:
    """Those of the topologically sorted `nodes` that `outputs` depend on."""
    used, kept = set(outputs), []
    for node in reversed(list(nodes)):
        if used.intersection(node.output):
            used.update(node.input)
            kept.append(node)
    return kept[::-1]


def part_of(
    whole: onnx.ModelProto,
    nodes: Iterable[onnx.NodeProto],
    outputs: Sequence[onnx.ValueInfoProto],
    *,
    told: Collection[str] = (),
) -> onnx.ModelProto:
    """Of the topologically sorted `nodes` those that `outputs` depend on, with the inputs and weights of `whole`.

    Inputs that it is `told` stay even where nothing takes them.
    """
    kept = needed(nodes, {value.name for value in outputs})
    used = {name for node in kept for name in node.input}
    part = helper.make_graph(
        kept,
        whole.graph.name,
        [value for value in whole.graph.input if value.name in used or value.name in told],
        outputs,
        [weight for weight in whole.graph.initializer if weight.name in used],
    )
    return helper.make_model(part, opset_imports=whole.opset_import, ir_version=whole.ir_version)


def made_by(program: torch.onnx.ONNXProgram) -> onnx.ModelProto:
    """The graph of torch's exporter, with constants that its optimizer made for what another one had the name of."""
    graph = program.model.graph
    given = {value.name for value in graph.inputs} | graph.initializers.keys()
    for node in graph:
        for value in node.inputs:
            if value is None or value.const_value is None or value.producer() is not None or value.name in given:
                continue
            graph.register_initializer(value)
            given.add(value.name)
    return program.model_proto


def without_notes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop torch's metadata of nodes and values, which has source lines with their local paths."""
    graph = model.graph
    del graph.value_info[:], graph.metadata_props[:]
    for notes in (graph.node, graph.input, graph.output, graph.initializer):
        for noted in notes:
            del noted.metadata_props[:]
    return model


def quantized(model: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    """The graph with the weights of its products in a precision; embeddings keep theirs."""
    if precision == "fp32":
        return model
    with quiet():
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        bits = _BITS[precision]
        quantizer = MatMulNBitsQuantizer(model, bits=bits, block_size=32, is_symmetric=True, accuracy_level=4)
        quantizer.process()
    made: onnx.ModelProto = quantizer.model.model
    return made
