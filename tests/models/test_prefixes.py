"""The decoder's first layers as graphs: what transformers computes there, and no weight that they do not need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

from cutline.models.bundle import PREFIX_WEIGHTS, DecoderSpec, Precision, span_file
from cutline.models.export.decoder import whole_feed
from cutline.models.export.prefixes import export_prefixes
from cutline.models.families.smolvlm import SmolVLM
from cutline.models.layerline import LayerLine

FAMILY = SmolVLM(tile=32, patch=8, tile_tokens=4, longest_edge=32, split=False)
LINE = LayerLine(vision=1, decoder=3)
SPEC = DecoderSpec(width=32, layers=3, heads=4, kv_heads=2, head_dim=16, vocabulary=90, context=64)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request: pytest.FixtureRequest, tiny: Callable[..., dict[str, Any]]) -> Any:
    """More query heads than key-value heads, and heads wider than width / heads."""
    torch.manual_seed(4)
    config = SmolVLMConfig(**tiny(tied=request.param, num_hidden_layers=SPEC.layers))
    return SmolVLMForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prefixes")
    assert export_prefixes(model, FAMILY, LINE, SPEC, folder, "fp32") <= 1e-5
    return folder


def test_boundaries_are_transformers_hidden_states(model: Any, folder: Path) -> None:
    rows = torch.randn(1, 30, SPEC.width, generator=torch.Generator().manual_seed(8))
    with torch.inference_mode():
        decoder = model.model.text_model
        states = decoder(inputs_embeds=rows, use_cache=False, output_hidden_states=True).hidden_states
        for layer, cut in enumerate(LINE.deep_cuts, start=1):
            session = ort.InferenceSession(folder / span_file(cut, "decoder.0"))
            (boundary,) = session.run(["boundary"], whole_feed(rows.numpy(), np.arange(30)[None], FAMILY, SPEC, layer))
            # transformers gives the last of its states normed.
            found = torch.from_numpy(boundary)
            found = decoder.norm(found) if cut == "head" else found
            np.testing.assert_allclose(found.numpy(), states[layer].numpy(), atol=1e-4)


def test_a_graph_names_only_the_weights_of_its_own_layers(folder: Path) -> None:
    used = []
    for layers, cut in enumerate(LINE.deep_cuts, start=1):
        graph = onnx.load(folder / span_file(cut, "decoder.0"), load_external_data=False).graph
        names = {weight.name for weight in graph.initializer}
        assert {name.split(".")[2] for name in names if name.startswith("model.layers.")} == set(
            map(str, range(layers))
        )
        assert {value.name for value in graph.output} == {
            "boundary",
            *(f"present.{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")),
        }
        assert not any("lm_head" in name or "embed" in name for name in names)
        stored = [
            entry.value for weight in graph.initializer for entry in weight.external_data if entry.key == "location"
        ]
        assert set(stored) == {PREFIX_WEIGHTS}
        used.append(len(names))
    assert used == sorted(set(used))
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [PREFIX_WEIGHTS, *(span_file(cut, "decoder.0") for cut in LINE.deep_cuts)]
    )


@pytest.mark.parametrize(("precision", "least", "most"), [("int8", 1e-3, 0.1), ("int4", 1e-2, 0.5)])
def test_quantized_prefixes_are_close(
    model: Any, tmp_path: Path, precision: Precision, least: float, most: float
) -> None:
    assert least < export_prefixes(model, FAMILY, LINE, SPEC, tmp_path, precision) < most
