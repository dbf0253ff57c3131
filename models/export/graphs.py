"""What exporters do with graphs, whatever made them: notes taken out, parts cut off, weights quantized."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import onnx
import onnx_ir
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


def products(whole: onnx_ir.Model) -> list[tuple[onnx_ir.Node, onnx_ir.Value]]:
    """The products of rows and a weight in a graph, with the weights."""
    found = [(node, node.inputs[1]) for node in whole.graph if node.op_type == "MatMul"]
    return [(node, weight) for node, weight in found if weight is not None and weight.is_initializer()]


def product_alone(product: onnx_ir.Node, weight: onnx_ir.Value, whole: onnx_ir.Model) -> onnx_ir.Model:
    """A model of one of its `products`; the weight is not copied."""
    rows, alone = onnx_ir.Value(name="rows"), onnx_ir.Value(name=weight.name, const_value=weight.const_value)
    node = onnx_ir.node("MatMul", [rows, alone], name=product.name)
    node.outputs[0].name = "made"
    graph = onnx_ir.Graph(
        [rows], node.outputs, nodes=[node], initializers=[alone], opset_imports=whole.graph.opset_imports
    )
    return onnx_ir.Model(graph, ir_version=whole.ir_version)


def replace_product(product: onnx_ir.Node, weight: onnx_ir.Value, other: onnx_ir.Model, whole: onnx_ir.Model) -> None:
    """Put the one node of the `other` model, with its weights, in the place of one of the `products`."""
    (made,) = other.graph
    # Copied, for a part of a protobuf holds on to all of it, and that has the weight as it was.
    weights = [
        onnx_ir.Value(name=value.name, const_value=onnx_ir.tensor(value.const_value.numpy().copy(), name=value.name))
        for value in made.inputs[1:]
        if value is not None and value.const_value is not None
    ]
    node = onnx_ir.Node(
        made.domain, made.op_type, [product.inputs[0], *weights], list(made.attributes.values()), name=made.name
    )
    graph = whole.graph
    onnx_ir.convenience.replace_nodes_and_values(graph, product, [product], [node], product.outputs, node.outputs)
    if not weight.uses():
        del graph.initializers[str(weight.name)]
    for value in weights:
        graph.register_initializer(value)
    graph.opset_imports.setdefault(made.domain, 1)
