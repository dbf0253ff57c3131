"""Exporting the vision tower and connector as ONNX graphs, one a cut: each runs `[image, cut)`.

    pixels (n, 3, tile, tile) -> boundary (n, rows, width) float32

The graphs share one file of weights, and a session over one of them loads only what its own span needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx.external_data_helper import convert_model_to_external_data
from onnx.utils import Extractor
from torch import Tensor, nn

from cutline.errors import BundleError
from cutline.models.bundle import SPAN_WEIGHTS, ImageSpec, span_file
from cutline.models.export.quiet import quiet

TOLERANCE = 1e-4  # of the largest value


class Tower(nn.Module):
    """The tower for whole tiles: without the padding mask, every patch is seen and its place is fixed."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        vision = model.vision_model
        self.patches = vision.embeddings.patch_embedding
        self.places = vision.embeddings.position_embedding.weight
        self.encoder = vision.encoder
        self.norm = vision.post_layernorm
        self.connector = model.connector

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """From `pixels` (n, 3, tile, tile) to the boundary at every cut, `vision.0` first and `decoder.0` last."""
        boundaries = [self.patches(pixels).flatten(2).transpose(1, 2) + self.places]
        for layer in self.encoder.layers:
            boundaries.append(layer(boundaries[-1], None))
        return (*boundaries, self.connector(self.norm(boundaries[-1])))


def export_vision(model: Any, image: ImageSpec, folder: Path, cuts: Sequence[str]) -> float:
    """Write the graphs of `cuts` (of `LayerLine.image_cuts`) and their weights to `folder`; returns the error.

    `model` is a SmolVLMForConditionalGeneration in fp32. The error is the largest difference of the last boundary from
    transformers' own image features, as a share of the largest value. Raises BundleError when it is beyond `TOLERANCE`.
    """
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(3, 3, image.tile, image.tile, generator=generator) * 2 - 1
    tower = Tower(model.model).eval()
    with quiet():
        program = torch.onnx.export(
            tower,
            (pixels[:2],),
            input_names=["pixels"],
            output_names=[*(f"vision.{index}" for index in range(len(tower.encoder.layers))), "connector", "decoder.0"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("n")}},
            opset_version=23,  # the first with an Attention operator: attention stays one node
            dynamo=True,
        )
    assert program is not None  # as it is when dynamo is False
    whole = _without_notes(program.model_proto)
    # Saving moves the weights out of the graph and leaves what points to them, which every span then keeps.
    convert_model_to_external_data(whole, location=SPAN_WEIGHTS, size_threshold=1024)
    onnx.save_model(whole, folder / span_file("decoder.0"))
    (folder / SPAN_WEIGHTS).chmod(0o644)  # as any other file; onnx makes it for its owner alone
    for cut in cuts:
        onnx.save_model(Extractor(whole).extract_model(["pixels"], [cut]), folder / span_file(cut))
    return _difference(model, pixels, folder / span_file("decoder.0"))


def _difference(model: Any, pixels: Tensor, path: Path) -> float:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (rows,) = session.run(["decoder.0"], {"pixels": pixels.numpy()})
    with torch.inference_mode():
        expected = torch.cat(model.model.get_image_features(pixels[:, None]).pooler_output).numpy()
    error = float(np.abs(rows.reshape(expected.shape) - expected).max() / np.abs(expected).max())
    if not error <= TOLERANCE:
        raise BundleError(f"the exported vision tower differs from torch's by {error:.1e} (allowed {TOLERANCE:.0e})")
    return error


def _without_notes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop what torch notes at every node and value: the lines of code it came from, with their folders."""
    graph = model.graph
    del graph.value_info[:], graph.metadata_props[:]
    for notes in (graph.node, graph.input, graph.output, graph.initializer):
        for noted in notes:
            del noted.metadata_props[:]
    return model
