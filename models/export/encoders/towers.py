"""Exports a dual encoder's towers as ONNX graphs, whose inputs and outputs cutline.models.encoders.bundle lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx.external_data_helper import convert_model_to_external_data
from onnx.utils import Extractor
from torch import Tensor, nn

from cutline.errors import BundleError
from cutline.models.bundle import SPAN_WEIGHTS, Precision, span_file
from cutline.models.encoders.bundle import TEXT_GRAPH, TEXT_WEIGHTS
from cutline.models.encoders.tokenizer import TextRules
from cutline.models.export.graphs import quantized, without_notes
from cutline.models.export.quiet import quiet
from cutline.models.export.vision import fused
from cutline.models.layerline import END

FEATURES = "features"
# The largest difference from transformers' features, as a share of the largest value; of int8 the root mean square
# difference as a share of their standard deviation: unrelated features have 1.4.
TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "int8": 0.25}
SEEDS = (1, 2)

Floats = NDArray[np.float32]


class _ImageTower(nn.Module):
    """The image tower of `model`, from pixels to the rows before each layer and before the head, then features."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.vision_model
        self.projection = getattr(model, "visual_projection", None)  # of CLIP alone

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        rows = self.tower.embeddings(pixels)
        if self.projection is not None:
            rows = self.tower.pre_layrnorm(rows)
        boundaries = [rows]
        for layer in self.tower.encoder.layers:
            boundaries.append(layer(boundaries[-1], None))
        rows = boundaries[-1]
        if self.projection is not None:
            return (*boundaries, self.projection(self.tower.post_layernorm(rows[:, 0])))
        return (*boundaries, self.tower.head(self.tower.post_layernorm(rows)))


class _TextTower(nn.Module):
    """The text tower of `model`, from ids to features: those of the last row."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower = model.text_model
        self.causal = model.config.model_type == "clip"
        self.projection = model.text_projection if self.causal else model.text_model.head

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.tower.embeddings(ids)
        more = {"is_causal": True} if self.causal else {}
        for layer in self.tower.encoder.layers:
            rows = layer(rows, None, **more)
        features: Tensor = self.projection(self.tower.final_layer_norm(rows)[:, -1])
        return features


def export_image_tower(model: Any, folder: Path, line: Sequence[str], precision: Precision) -> float:
    """Write the graphs of every cut of the image tower and their weights to `folder`; returns the largest error.

    Every pair of graphs that meet at a cut is compared with transformers' own features. Raises BundleError if one
    differs by more than the precision's tolerance.
    """
    side = model.config.vision_config.image_size
    pixels = torch.zeros(1, 3, side, side)
    names = [*line[1:], FEATURES]
    whole = fused(_exported(_ImageTower(model), pixels, names=("pixels", names), dynamic=None))
    whole = quantized(without_notes(whole), precision)
    convert_model_to_external_data(whole, location=SPAN_WEIGHTS, size_threshold=1024)
    path = folder / "whole.onnx"
    onnx.save_model(whole, path)
    (folder / SPAN_WEIGHTS).chmod(0o644)  # onnx makes files that only their owner may read
    path.unlink()
    extractor = Extractor(whole)
    onnx.save_model(extractor.extract_model(["pixels"], [FEATURES]), folder / span_file(END))
    for cut in line[1:]:
        onnx.save_model(extractor.extract_model(["pixels"], [cut]), folder / span_file(cut))
        onnx.save_model(extractor.extract_model([cut], [FEATURES]), folder / span_file(END, cut))
    return max(_image_errors(model, folder, line, precision))


def export_text_tower(model: Any, folder: Path, rules: TextRules, precision: Precision) -> float:
    """Write the graph of the text tower and its weights to `folder`; returns the largest error, as of the image tower.

    Raises BundleError.
    """
    example = torch.zeros(1, rules.length, dtype=torch.int64)
    any_length = {"ids": {1: torch.export.Dim.DYNAMIC}} if rules.padding is None else None
    graph = _exported(_TextTower(model), example, names=("ids", [FEATURES]), dynamic=any_length)
    whole = quantized(without_notes(graph), precision)
    convert_model_to_external_data(whole, location=TEXT_WEIGHTS, size_threshold=1024)
    onnx.save_model(whole, folder / TEXT_GRAPH)
    (folder / TEXT_WEIGHTS).chmod(0o644)
    return max(_text_errors(model, folder, rules, precision))


def _exported(
    tower: nn.Module, example: Tensor, *, names: tuple[str, list[str]], dynamic: dict[str, Any] | None
) -> onnx.ModelProto:
    with quiet():
        program = torch.onnx.export(
            tower.eval(),
            (example,),
            input_names=[names[0]],
            output_names=names[1],
            dynamic_shapes=dynamic,
            opset_version=23,  # the first with an attention operator, so attention stays one node
            dynamo=True,
        )
    assert program is not None  # only without dynamo it is None
    return program.model_proto


def _image_errors(model: Any, folder: Path, line: Sequence[str], precision: Precision) -> Iterator[float]:
    """The errors of the uncut graph and of each pair that meets at a cut: one at a time, as each has all weights."""
    side = model.config.vision_config.image_size
    images = [np.random.default_rng(seed).uniform(-1, 1, (1, 3, side, side)).astype(np.float32) for seed in SEEDS]
    with torch.inference_mode():
        expected = [model.get_image_features(torch.from_numpy(pixels)).pooler_output.numpy() for pixels in images]
    whole = _session(folder / span_file(END))
    for pixels, features in zip(images, expected, strict=True):
        (found,) = whole.run([FEATURES], {"pixels": pixels})
        yield _error(found, features, precision, "image tower")
    del whole
    for cut in line[1:]:
        front = _session(folder / span_file(cut))
        crossed = [front.run([cut], {"pixels": pixels})[0] for pixels in images]
        del front
        rear = _session(folder / span_file(END, cut))
        for rows, features in zip(crossed, expected, strict=True):
            (found,) = rear.run([FEATURES], {cut: rows})
            yield _error(found, features, precision, f"image tower at {cut}")
        del rear


def _text_errors(model: Any, folder: Path, rules: TextRules, precision: Precision) -> list[float]:
    session, config = _session(folder / TEXT_GRAPH), model.config.text_config
    errors = []
    for seed in SEEDS:
        length = rules.length if rules.padding is not None else max(2, rules.length - seed)
        ids = np.random.default_rng(seed).integers(0, config.vocab_size, (1, length))
        if model.config.model_type == "clip":  # takes the row of the token that ends a text, wherever that is
            end = config.vocab_size - 1 if config.eos_token_id == 2 else config.eos_token_id
            ids[ids == end] = 0
            ids[0, -1] = end
        with torch.inference_mode():
            expected = model.get_text_features(torch.from_numpy(ids)).pooler_output.numpy()
        (features,) = session.run([FEATURES], {"ids": ids})
        errors.append(_error(features, expected, precision, "text tower"))
    return errors


def _session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def _error(found: Floats, expected: Floats, precision: Precision, what: str) -> float:
    measures: dict[Precision, Callable[[], Any]] = {
        "fp32": lambda: np.abs(found - expected).max() / np.abs(expected).max(),
        "int8": lambda: np.sqrt(np.mean((found - expected) ** 2)) / expected.std(),
    }
    error, allowed = float(measures[precision]()), TOLERANCES[precision]
    if not error <= allowed:
        raise BundleError(f"the exported {what} differs from torch's by {error:.1e} (allowed {allowed})")
    return error
