"""What is Gemma 4's own: keys that layers share, what they are given of each token, and where no cut can be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRotaryEmbedding

from cutline.cloud.model.batch import NobodysRows
from cutline.cloud.model.loader import load_model
from cutline.cloud.model.model_runner import Capacity, Target
from cutline.edge.inference.decoder import Decoder
from cutline.edge.inference.target_prefix import check_cut, device_cuts
from cutline.errors import InputError
from cutline.models.bundle import Bundle
from cutline.models.costs import layer_costs
from cutline.models.export.source import SourceModel, read_source
from cutline.models.families.gemma.gemma4 import FULL, WINDOWED, Gemma4
from cutline.models.families.layer_state import KEYS_VALUES, KeysValues, SharedKeys
from cutline.models.layerline import LayerLine
from cutline.testing.models.small_models import SMALL


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SourceModel:
    folder = tmp_path_factory.mktemp("gemma4")
    SMALL["gemma4"].write(folder)
    return read_source(folder)


def test_no_cut_parts_a_layer_from_the_one_whose_keys_it_reads(source: SourceModel) -> None:
    """As transformers says which layer reads which."""
    config = source.model.config.text_config
    modes, kinds = config.kv_sharing_modes, config.layer_types
    stored = {kinds[layer]: layer for layer, mode in enumerate(modes) if mode == "store"}
    for layer, mode in enumerate(modes):
        kept = source.family.keeps(layer)
        own = KEYS_VALUES if kinds[layer] == WINDOWED else KeysValues(2, 48)
        assert kept == (SharedKeys(stored[kinds[layer]]) if mode == "reuse" else own)
    assert source.line.deepest == min(stored.values()) == 2
    assert source.line.cuts[-3:] == ("decoder.0", "decoder.1", "decoder.2")
    assert source.line.layers[-1] == "head"


def test_a_line_without_shared_keys_is_written_as_before() -> None:
    assert msgspec.json.encode(LayerLine(vision=2, decoder=3)) == b'{"vision":2,"decoder":3}'
    assert LayerLine(vision=2, decoder=3).cuts == LayerLine(vision=2, decoder=3).layers


def test_a_cut_that_is_none_is_refused_by_name(targets: Callable[[str], Bundle]) -> None:
    bundle = targets("gemma4")
    assert device_cuts(bundle.manifest) == bundle.manifest.line.cuts[1:]
    with pytest.raises(InputError, match=r"has no cut 'decoder\.3'; cuts: image, .*decoder\.2$"):
        check_cut(bundle, "decoder.3")


def test_rotations_are_those_of_transformers(source: SourceModel) -> None:
    positions = np.array([0, 1, 5, 300, 1023])
    theirs = Gemma4TextRotaryEmbedding(source.model.config.text_config)
    found = source.family.rotations(positions[None])
    for kind in (FULL, WINDOWED):
        cos, sin = theirs(torch.zeros(1), torch.from_numpy(positions)[None], kind)
        np.testing.assert_allclose(found[f"cos.{kind}"], cos[0].numpy(), atol=2e-4)
        np.testing.assert_allclose(found[f"sin.{kind}"], sin[0].numpy(), atol=2e-4)


def test_layers_cost_what_their_own_heads_do(source: SourceModel) -> None:
    costs = layer_costs(source.manifest(name="seeded", role="target", precision="fp32", target=None))
    layers = [cost for cost in costs if cost.name.startswith("decoder.")]
    assert [layer.attends for layer in layers] == [4 * 32, 4 * 48] * 3
    assert [layer.kv_bytes_per_token for layer in layers] == [2 * 2 * 32 * 4, 2 * 2 * 48 * 4] * 2 + [0, 0]
    assert [layer.window for layer in layers] == [6, 0] * 3
    # Inside the decoder the row with which a token entered crosses beside the residual stream.
    assert [layer.width for layer in layers][:3] == [128, 256, 256]


def test_slots_hold_the_keys_that_there_are(targets: Callable[[str], Bundle]) -> None:
    target = Target(targets("gemma4"), Capacity(slots=2, context=32))
    held = [tuple(part.shape) for part in target._cache.keys]
    assert held == [(2, 2, 32, 32), (2, 2, 32, 48)] * 2


def test_an_image_token_that_is_no_pictures_is_read_as_a_filler(targets: Callable[[str], Bundle]) -> None:
    """On a worker and a device, as transformers reads one that is answered."""
    bundle = targets("gemma4")
    manifest = bundle.manifest
    ids = (9, 30, manifest.image_token, 41, 17)
    target = Target(bundle, Capacity(slots=1, context=32))
    (found,) = target.run([NobodysRows(0, 0, ids, wanted=len(ids), axes=1)], [None])
    whole = load_model(bundle)
    with torch.inference_mode():
        expected = whole(input_ids=torch.tensor([ids])).logits[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    prefix = Decoder.open_prefix(bundle, "decoder.1", threads=1)
    rows = prefix.embed([manifest.image_token, whole.config.text_config.pad_token_id, 9])
    np.testing.assert_array_equal(rows[0], rows[1])
    assert (rows[0] != rows[2]).any()


def test_a_worker_computes_in_half_precision(targets: Callable[[str], Bundle]) -> None:
    """Towers, keys of either size, and what layers are given: close to what it answers in float32."""
    bundle = targets("gemma4")
    image = bundle.manifest.family.example(0)
    count = bundle.manifest.family.tokens(image.grid)
    rows = NobodysRows(0, 0, (9, *[bundle.manifest.image_token] * count, 30), wanted=1, axes=1)
    made = []
    for dtype in (torch.float32, torch.bfloat16):
        target = Target(bundle, Capacity(slots=1, context=32), dtype=dtype)
        encoded = target.encode(image.values, "image", [image.grid])
        made.append(target.run([rows], [encoded])[0][-1].float())
    assert torch.corrcoef(torch.stack(made))[0, 1] > 0.99


def test_a_mixture_counts_the_experts_that_a_row_takes(tmp_path: Path) -> None:
    SMALL["gemma4-experts"].write(tmp_path)
    source = read_source(tmp_path)
    layer = source.model.model.language_model.layers[0]
    whole = sum(weight.numel() for weight in layer.parameters())
    experts = sum(weight.numel() for weight in layer.experts.parameters())
    place = source.line.place("decoder.0")
    assert source.parameters[place] == whole - experts // 2  # two of four
    assert isinstance(source.family, Gemma4)
    assert source.family.ungraphed == "mixes experts"


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("gemma4_unified", "no vision tower"),
        ("gemma4_assistant", "no keys of its own"),
        ("gemma4_unified_assistant", "no keys of its own"),
    ],
)
def test_a_relative_that_does_not_run_says_why(kind: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(InputError, match=f"of the kind {kind}, which does not run: .*{why}"):
        read_source(tmp_path)


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("text_config", {"use_bidirectional_attention": "all"}, "use_bidirectional_attention 'all'"),
        ("text_config", {"num_kv_shared_layers": 6}, "num_kv_shared_layers 6"),
        ("text_config", {"vocab_size_per_layer_input": 99}, "vocab_size_per_layer_input 99"),
        ("vision_config", {"pooling_kernel_size": 3}, "pooling_kernel_size 2 in its image processor, and 3"),
        ("vision_config", {"position_embedding_size": 40}, "position_embedding_size 40"),
    ],
)
def test_what_does_not_run_is_named(
    source: SourceModel, part: str, change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    for other in source.path.iterdir():
        (tmp_path / other.name).symlink_to(other)
    said = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(said | {part: said[part] | change}))
    with pytest.raises(InputError, match=words) as refused:
        read_source(tmp_path)
    assert "\n" not in str(refused.value)
