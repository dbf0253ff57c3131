"""Exports the vision tower and connector as ONNX graphs, one for each cut, which runs `[image, cut)`.

    pixels, and the tower's other inputs (`Family.runs`) -> boundary (rows, streams * width) float32

A graph runs one tile, or one image of a family whose tower has other inputs. The graphs share one file of weights. A
session of a graph loads only the weights of its own span.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper
from onnx.external_data_helper import convert_model_to_external_data
from onnx.utils import Extractor
from torch import Tensor, nn
from torch.nn import functional

from cutline.errors import BundleError
from cutline.models.bundle import SPAN_WEIGHTS, span_file
from cutline.models.export.graphs import made_by, without_notes
from cutline.models.export.quiet import quiet
from cutline.models.families import Family, Ops
from cutline.models.images import Pixels

TOLERANCE = 1e-4  # as a share of the largest value
SEEDS = (1, 2)  # of the images on which an export is compared


class TowerGraph(nn.Module):
    """The tower and connector of a family's `model`, as one graph of plain tensors."""

    def __init__(self, family: Family, model: Any, beside: Sequence[str]) -> None:
        """`beside` names the inputs after the pixels."""
        super().__init__()
        self._family = family
        self._beside = beside
        made = family.parts.modules(model)
        self.image = nn.ModuleList(made.image)
        self.entering = nn.ParameterList(made.entering)
        self.layers = nn.ModuleList(layer[0] if len(layer) == 1 else nn.ModuleList(layer) for layer in made.tower)
        self.connector = nn.ModuleList(made.connector)
        self.learnt = nn.ParameterList(made.learnt)

    def forward(self, pixels: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        """From `pixels` to the boundary at every cut, `vision.0` first and `decoder.0` last."""
        beside = dict(zip(self._beside, given, strict=True))
        ops = Ops(attend=functional.scaled_dot_product_attention, join=torch.cat)
        boundaries = [self._family.enter([*self.image, *self.entering], pixels, beside)]
        for index, layer in enumerate(self.layers):
            boundaries.append(self._family.step(layer, index, boundaries[-1], beside, ops))
        return (*boundaries, self._family.leave([*self.connector, *self.learnt], boundaries[-1], beside, ops))


def export_vision(model: Any, family: Family, folder: Path, cuts: Sequence[str]) -> float:
    """Write the graphs of `cuts` (of `LayerLine.image_cuts`) and their weights to `folder`; returns the error.

    `model` is in fp32. The error is the largest difference of the last boundary from transformers' own image features,
    as a share of the largest value. Raises BundleError if it exceeds TOLERANCE.
    """
    pixels, beside = _run(family, family.example(SEEDS[0]))
    tower = TowerGraph(family, model, list(beside)).eval()
    # A tower with further inputs takes whole images, so the number of rows varies.
    any_size = {0: torch.export.Dim.DYNAMIC}
    with quiet():
        program = torch.onnx.export(
            tower,
            (pixels, *beside.values()),
            input_names=["pixels", *beside],
            output_names=[*(f"vision.{index}" for index in range(len(tower.layers))), "connector", "decoder.0"],
            dynamic_shapes=(any_size, (any_size,) * len(beside)) if beside and not family.of_one_size else None,
            opset_version=23,  # the first with an attention operator, so attention stays one node
            dynamo=True,
        )
    assert program is not None  # only without dynamo it is None
    whole = without_notes(fused(made_by(program)))
    # Saving moves the weights out of the graph and leaves references, which the graphs of all spans share.
    convert_model_to_external_data(whole, location=SPAN_WEIGHTS, size_threshold=1024)
    onnx.save_model(whole, folder / span_file("decoder.0"))
    (folder / SPAN_WEIGHTS).chmod(0o644)  # onnx makes files that only their owner may read
    for cut in cuts:
        onnx.save_model(Extractor(whole).extract_model(["pixels", *beside], [cut]), folder / span_file(cut))
    return max(_difference(model, family, seed, folder / span_file("decoder.0")) for seed in SEEDS)


def _run(family: Family, image: Pixels) -> tuple[Tensor, dict[str, Tensor]]:
    """The inputs of one run of a graph."""
    ((values, beside),) = family.runs(image.values, [image.grid])
    return torch.from_numpy(values), {name: torch.from_numpy(array) for name, array in beside.items()}


def _difference(model: Any, family: Family, seed: int, path: Path) -> float:
    image = family.example(seed)
    pixels, beside = _run(family, image)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = {"pixels": pixels, **beside}
    (rows,) = session.run(["decoder.0"], {value.name: given[value.name].numpy() for value in session.get_inputs()})
    with torch.inference_mode():
        images = {name: torch.from_numpy(array) for name, array in family.as_given([image]).items()}
        # One tensor an image, or one for all; and so of each tap.
        streams = family.features(model.base_model, images)
        expected = torch.cat([torch.cat(list(stream)) for stream in streams], dim=1).numpy()
    error = float(np.abs(rows - expected).max() / np.abs(expected).max())
    if not error <= TOLERANCE:
        raise BundleError(f"the exported vision tower differs from torch's by {error:.1e} (allowed {TOLERANCE:.0e})")
    return error


def fused(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace unmasked attention by ONNX Runtime's own operator.

    On a CPU it takes half the time of the standard one, and memory linear in the rows instead of quadratic.
    """
    graph = model.graph
    shapes = {value.name: [size.dim_value for size in value.type.tensor_type.shape.dim] for value in graph.value_info}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != "Attention" or len(node.input) > 3:
            nodes.append(node)
            continue
        _, heads, _, width = shapes[node.input[0]]  # (images, heads, rows, width)
        rows = [f"{node.name}/{name}" for name in ("query", "key", "value", "attended")]
        for given, row in zip(node.input, rows, strict=False):
            nodes.append(helper.make_node("Transpose", [given], [f"{row}/turned"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"{row}/turned", "/rows"], [row]))
        (scale,) = (attribute.f for attribute in node.attribute if attribute.name == "scale")
        nodes.append(helper.make_node("MultiHeadAttention", rows[:3], rows[3:], node.name, domain="com.microsoft"))
        nodes[-1].attribute.extend([helper.make_attribute("num_heads", heads), helper.make_attribute("scale", scale)])
        split = f"{node.name}/heads"
        graph.initializer.append(helper.make_tensor(split, TensorProto.INT64, [4], [0, 0, heads, width]))
        nodes.append(helper.make_node("Reshape", [rows[3], split], [f"{rows[3]}/split"]))
        nodes.append(helper.make_node("Transpose", [f"{rows[3]}/split"], node.output, perm=[0, 2, 1, 3]))
    graph.initializer.append(helper.make_tensor("/rows", TensorProto.INT64, [3], [0, 0, -1]))
    del graph.node[:]
    graph.node.extend(nodes)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model
