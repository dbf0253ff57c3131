"""Exporting the vision tower and connector as one ONNX graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

from cutline.errors import BundleError
from cutline.models.bundle import ImageSpec
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

    def forward(self, pixels: Tensor) -> Tensor:
        """From `pixels` (n, 3, tile, tile) to image rows (n, tokens, width)."""
        patches = self.patches(pixels).flatten(2).transpose(1, 2) + self.places
        seen = self.encoder(inputs_embeds=patches, attention_mask=None).last_hidden_state
        rows: Tensor = self.connector(self.norm(seen))
        return rows


def export_vision(model: Any, image: ImageSpec, path: Path) -> float:
    """Write the tower of `model` (a SmolVLMForConditionalGeneration, fp32) to `path`; returns its error.

    The error is the largest difference from transformers' own image features, as a share of the largest value.
    Raises BundleError when it is beyond `TOLERANCE`.
    """
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(3, 3, image.tile, image.tile, generator=generator) * 2 - 1
    with quiet():
        program = torch.onnx.export(
            Tower(model.model).eval(),
            (pixels[:2],),
            input_names=["pixels"],
            output_names=["rows"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("n")}},
            opset_version=23,  # the first with an Attention operator: attention stays one node
            dynamo=True,
        )
    assert program is not None  # as it is when dynamo is False
    path.write_bytes(_without_notes(program.model_proto).SerializeToString())
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (rows,) = session.run(["rows"], {"pixels": pixels.numpy()})
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
