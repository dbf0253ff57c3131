"""Exports the decoder's first layers as ONNX graphs, one for each cut inside it, which runs `[decoder.0, cut)`.

    inputs_embeds, past_key_values.L.key/value, seqlens_k, total_sequence_length, maybe cos and sin: see
                                 cutline.models.export.decoder
    -> boundary                  (1, n, width) float32   the residual stream; at `head`, before the last norm
    -> present.L.key/value       of the layers before the cut

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
from cutline.models.export.decoder import TOLERANCES, build, needed, seeded_prompt, spread_of, whole_feed
from cutline.models.families import AnyFamily
from cutline.models.layerline import LayerLine

BOUNDARY = "boundary"


def export_prefixes(
    model: Any, family: AnyFamily, line: LayerLine, spec: DecoderSpec, folder: Path, precision: Precision
) -> float:
    """Write the graphs of every cut inside the decoder and their weights to `folder`; returns the largest error.

    `model` is in fp32. The error is the root mean square difference from transformers' hidden states at the same cut,
    on seeded rows, as a share of their standard deviation. Raises BundleError if one exceeds the precision's tolerance.
    """
    path = folder / PREFIX_WEIGHTS.removesuffix(".data")  # the builder appends it for the file of weights
    whole = build(model, family, spec, path, precision, head=False)
    path.unlink()
    for cut in line.deep_cuts:
        onnx.save_model(_prefix(whole, line.decoder_layer(cut), spec.width), folder / span_file(cut, "decoder.0"))
    return _largest_error(model, family, line, spec, folder, TOLERANCES[precision])


def _prefix(whole: onnx.ModelProto, layers: int, width: int) -> onnx.ModelProto:
    """The graph of the first `layers` layers, up to the residual sum before the next norm."""
    graph = whole.graph
    norms = [node for node in graph.node if node.op_type == "SkipSimplifiedLayerNormalization"]
    after = norms[2 * layers - 1]  # two a layer: after its attention, and after its MLP
    boundary = helper.make_node("Add", after.input[:2], [BOUNDARY], name="/boundary/Add")
    outputs = [
        helper.make_tensor_value_info(BOUNDARY, TensorProto.FLOAT, ["batch_size", "sequence_length", width]),
        *(value for value in graph.output if value.name in _caches("present", layers)),
    ]
    kept = needed([*graph.node, boundary], {value.name for value in outputs})
    used = {name for node in kept for name in node.input}
    prefix = helper.make_graph(
        kept,
        graph.name,
        [value for value in graph.input if value.name in used],
        outputs,
        [weight for weight in graph.initializer if weight.name in used],
    )
    return helper.make_model(prefix, opset_imports=whole.opset_import, ir_version=whole.ir_version)


def _caches(kind: str, layers: int) -> set[str]:
    return {f"{kind}.{layer}.{of}" for layer in range(layers) for of in ("key", "value")}


def _largest_error(
    model: Any, family: AnyFamily, line: LayerLine, spec: DecoderSpec, folder: Path, allowed: float
) -> float:
    rows, positions = seeded_prompt(model, family, spec)
    decoder = model.model.get_submodule(family.parts.decoder)
    with torch.inference_mode():
        expected = _hidden_states(decoder, rows, torch.from_numpy(family.as_ids(positions)))
    errors = [0.0]
    for cut in line.deep_cuts:
        layers = line.decoder_layer(cut)
        session = ort.InferenceSession(folder / span_file(cut, "decoder.0"), providers=["CPUExecutionProvider"])
        (boundary,) = session.run([BOUNDARY], whole_feed(rows.numpy(), positions, family, spec, layers))
        errors.append(spread_of(boundary, expected[layers]))
        if not errors[-1] <= allowed:
            raise BundleError(
                f"the exported decoder up to {cut} differs from torch's by {errors[-1]:.1e} (allowed {allowed})"
            )
    return max(errors)


def _hidden_states(decoder: Any, rows: torch.Tensor, positions: torch.Tensor) -> list[NDArray[np.float32]]:
    """The residual stream before every layer and after the last one, which transformers' own list has normalised."""
    states: list[NDArray[np.float32]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, given: states.append(given[0].numpy()))
        for layer in (*decoder.layers, decoder.norm)
    ]
    decoder(inputs_embeds=rows, position_ids=positions, use_cache=False)
    for hook in hooks:
        hook.remove()
    return states
