"""Exports the decoder's first layers as ONNX graphs, one for each cut inside it, which runs `[decoder.0, cut)`.

    inputs_embeds, past_key_values.L.key/value, seqlens_k, total_sequence_length, maybe others: see
                                 cutline.models.export.decoder
    -> boundary                  (1, n, streams * width) float32   the residual stream, at `head` before the last norm;
                                 and the streams that later layers take
    -> present.L.key/value       of the layers before the cut, and what else they keep

The graphs share one file of weights, without the head's. A session of a graph loads only the weights of its own layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from cutline.errors import BundleError
from cutline.models.bundle import PREFIX_WEIGHTS, DecoderSpec, Precision, span_file
from cutline.models.export.decoder import (
    TOLERANCES,
    build,
    residual_norms,
    run_whole,
    seeded_prompt,
    spread_of,
    stream_name,
    whole_feed,
)
from cutline.models.export.graphs import part_of
from cutline.models.export.traced import BOUNDARY, is_traced, traced, traced_prefix
from cutline.models.families import Family
from cutline.models.families.layer_state import keys_in_graph, states_in_graph
from cutline.models.layerline import LayerLine


def export_prefixes(
    model: Any, family: Family, line: LayerLine, spec: DecoderSpec, folder: Path, precision: Precision
) -> float:
    """Write the graphs of every cut inside the decoder and their weights to `folder`; returns the largest error.

    `model` is in fp32. The error is the root mean square difference from transformers' hidden states at the same cut,
    on seeded rows, as a share of their standard deviation. Raises BundleError if one exceeds the precision's tolerance.
    """
    path = folder / PREFIX_WEIGHTS.removesuffix(".data")  # the builder appends it for the file of weights
    ours = is_traced(family, spec)
    whole = (traced if ours else build)(model, family, spec, path, precision, head=False)
    path.unlink()
    for cut in line.deep_cuts:
        layers = line.decoder_layer(cut)
        prefix = traced_prefix(whole, family, cut, layers) if ours else _prefix(whole, family, layers, spec.width)
        onnx.save_model(prefix, folder / span_file(cut, "decoder.0"))
    return _largest_error(model, family, line, spec, folder, TOLERANCES[precision])


def _prefix(whole: onnx.ModelProto, family: Family, layers: int, width: int) -> onnx.ModelProto:
    """The graph of the first `layers` layers, up to the residual sum before the next norm."""
    graph, taps = whole.graph, len(family.taps)
    keeps = [family.keeps(layer) for layer in range(layers)]
    presents = {*keys_in_graph(keeps).values(), *(f"present.{name}" for name in states_in_graph(keeps))}
    after = residual_norms(graph.node)[2 * layers - 1]
    beside = [stream_name(index) for index in range(layers, taps)]
    own = "/boundary/own" if beside else BOUNDARY
    made = [helper.make_node("Add", after.input[:2], [own], name="/boundary/Add")]
    if beside:
        made.append(helper.make_node("Concat", [own, *beside], [BOUNDARY], name="/boundary/Concat", axis=-1))
    width *= 1 + len(beside)
    outputs = [
        helper.make_tensor_value_info(BOUNDARY, TensorProto.FLOAT, ["batch_size", "sequence_length", width]),
        *(value for value in graph.output if value.name in presents),
    ]
    # Layers without attention take neither lengths nor rotations, and are told them; of caches and of what rows see a
    # graph has what its layers take.
    told = [value.name for value in graph.input if not value.name.startswith(("past", "bias"))]
    return part_of(whole, [*graph.node, *made], outputs, told=told)


def _largest_error(
    model: Any, family: Family, line: LayerLine, spec: DecoderSpec, folder: Path, allowed: float
) -> float:
    rows, positions = seeded_prompt(model, family, spec)
    with torch.inference_mode():
        expected = _hidden_states(model, family, rows, positions)
    errors = [0.0]
    for cut in line.deep_cuts:
        layers = line.decoder_layer(cut)
        session = ort.InferenceSession(folder / span_file(cut, "decoder.0"), providers=["CPUExecutionProvider"])
        (boundary,) = session.run([BOUNDARY], whole_feed(rows.numpy(), positions, family, spec, layers))
        beside = [expected[layers], _beside(family, spec, rows.numpy(), layers)]
        errors.append(spread_of(boundary, np.concatenate(beside, axis=-1)))
        if not errors[-1] <= allowed:
            raise BundleError(
                f"the exported decoder up to {cut} differs from torch's by {errors[-1]:.1e} (allowed {allowed})"
            )
    return max(errors)


def _beside(family: Family, spec: DecoderSpec, rows: NDArray[np.float32], layers: int) -> NDArray[np.float32]:
    """What crosses beside the residual stream after so many layers: what later ones take of `rows` that entered."""
    if family.layer_inputs:
        return rows[..., : spec.width if layers < spec.layers else 0]
    return rows[..., (1 + layers) * spec.width :]


def _hidden_states(
    model: Any, family: Family, rows: torch.Tensor, positions: NDArray[np.int64]
) -> list[NDArray[np.float32]]:
    """The residual stream before every layer and after the last one, which transformers' own list has normalised."""
    states: list[NDArray[np.float32]] = []
    made = family.parts.modules(model)
    hooks = [
        layer.register_forward_pre_hook(lambda _, given: states.append(given[0].numpy()))
        for layer in (*made.layers, *([] if made.norm is None else [made.norm]))
    ]
    last = run_whole(model, family, rows, positions)
    if made.norm is None:
        states.append(last.numpy())
    for hook in hooks:
        hook.remove()
    return states
