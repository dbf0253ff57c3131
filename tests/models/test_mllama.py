"""What is Mllama's own: pictures beside the prompt, what tokens see of them, and what follows from that."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.mllama.image_processing_pil_mllama import get_all_supported_aspect_ratios
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from cutline.cloud.engine.kv_slots import Content, Mark, shared
from cutline.cloud.serving.admission import Reception, ServedSpan
from cutline.core.conversation import ImagePart, Message, TextPart
from cutline.core.sampling import Sampling
from cutline.core.wire import Wire
from cutline.errors import InputError, PromptError
from cutline.models.bundle import Manifest
from cutline.models.costs import layer_costs, request_sizes
from cutline.models.export import export_bundle
from cutline.models.export.source import SourceModel, read_source
from cutline.models.families.layer_state import CrossKeys
from cutline.models.families.mllama.canvas import arrangements
from cutline.models.layerline import END
from cutline.models.prompt import TEMPLATE, PromptBuilder
from cutline.models.vocabulary import TOKENIZER, Vocabulary
from cutline.protos.messages import SIDES, Boundary, Open, boundary_chunks
from cutline.testing.models.small_models import SMALL

Layout = list[tuple[int, int] | int]  # grids of pictures, and numbers of words


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> SourceModel:
    folder = tmp_path_factory.mktemp("mllama")
    SMALL["mllama"].write(folder)
    return read_source(folder)


@pytest.fixture(scope="module")
def manifest(source: SourceModel) -> Manifest:
    made = source.manifest(name="seeded", role="target", precision="fp32", target=None)
    return msgspec.structs.replace(made, identity="a" * 64)


@pytest.mark.parametrize(
    "layout",
    [
        [(1, 2), 5],
        [3, (1, 1), 4],
        [2, (2, 1), 3, (1, 3), 4],
        [2, (1, 2), (1, 1), 4, (3, 1), 2],
        [(1, 1), (1, 1), (2, 1)],
    ],
)
def test_tokens_see_what_transformers_processor_says(source: SourceModel, layout: Layout) -> None:
    ids, grids = [1], []
    for part in layout:
        ids += [5] * part if isinstance(part, int) else [source.image_token]
        grids += [] if isinstance(part, int) else [part]
    sparse, tiles = get_cross_attention_token_mask(ids, source.image_token), [rows * cols for rows, cols in grids]
    expected = convert_sparse_cross_attention_mask_to_dense([sparse], [tiles], 3, len(ids))
    made = source.family.token_types(np.array([ids]) == source.image_token, grids)
    np.testing.assert_array_equal(made["cross_attention_mask"], expected)
    sides = source.family.positions(np.array(ids) == source.image_token, grids).sides
    assert sides is not None
    assert sorted(sides.order) == list(range(sum(map(source.family.rows, grids))))
    assert sides.at(len(ids), len(ids) + 2).tolist() == [sides.seen[-1].tolist()] * 2


def test_arrangements_are_those_of_transformers() -> None:
    for most in (1, 3, 4, 6):
        assert arrangements(most) == get_all_supported_aspect_ratios(most)


def test_a_drafter_of_it_is_refused_by_name(source: SourceModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="attends to pictures beside the prompt, of which no graph"):
        export_bundle(
            source.path, tmp_path / "out", role="drafter", precision="int8", name="it", progress=lambda _: None
        )


def test_more_pictures_than_a_slot_has_room_for_are_refused(source: SourceModel, manifest: Manifest) -> None:
    prompts = PromptBuilder.read(manifest, Vocabulary.read(source.companions[TOKENIZER]), source.companions[TEMPLATE])
    asked = Message("user", (*(ImagePart(),) * 5, TextPart("which?")))
    with pytest.raises(PromptError, match="takes 4 images in a question, and 5 came"):
        prompts.build([asked], [(1, 1)] * 5)


def test_rows_are_only_shared_where_all_pictures_are_the_same(source: SourceModel) -> None:
    """What stands before the first picture sees every one of them."""
    ids = np.array([1, 5, 6, source.image_token, 7, 8])
    positions = source.family.positions(ids == source.image_token, [(1, 2)])
    held = Content("", ids, (Mark(3, 4, b"one"),), positions)
    assert shared(held, held) == len(ids)
    assert shared(held, replace(held, marks=(Mark(3, 4, b"other"),))) == 0
    assert shared(held, replace(held, marks=(Mark(3, 4, None),))) == 0


class Given:
    """An inbox with what came."""

    def __init__(self, *messages: Boundary) -> None:
        self.messages = list(messages)

    async def next(self) -> Any:
        return self.messages.pop(0) if self.messages else None


def test_a_worker_takes_the_rows_beside_a_prompt_in_their_number_and_by_their_name(manifest: Manifest) -> None:
    opening = Open(
        model=manifest.identity,
        tokens=(1, 5, manifest.image_token, 6),
        prompt_length=4,
        max_tokens=4,
        cut="decoder.2",
        sampling=Sampling(),
        effort=1.0,
        grids=((1, 2),),
    )
    reception = Reception(manifest, ServedSpan(context=64, layers=("decoder.2", END)))
    reception.check(opening)
    width, beside = manifest.decoder.width, manifest.family.rows((1, 2))
    rows, sides = np.ones((4, width), np.float32), np.ones((beside, width), np.float32)

    def take(*messages: Boundary) -> Any:
        return asyncio.run(reception.upload(opening, Given(*messages)))  # type: ignore[arg-type]

    first = list(boundary_chunks(rows, Wire.FLOAT32, more=True))
    taken = take(*first, *boundary_chunks(sides, Wire.FLOAT32, tensor=SIDES))
    np.testing.assert_array_equal(taken.sides, sides)
    for wrong in (
        list(boundary_chunks(rows, Wire.FLOAT32)),  # none of them
        [*first, *boundary_chunks(sides[:-1], Wire.FLOAT32, tensor=SIDES)],
        [*first, *boundary_chunks(sides, Wire.FLOAT32)],
        [*first, *boundary_chunks(np.vstack([sides, sides]), Wire.FLOAT32, tensor=SIDES)],
    ):
        with pytest.raises(InputError, match="boundary rows"):
            take(*wrong)
    late = replace(opening, cut="decoder.6")  # behind the last layer that takes them
    last = Reception(manifest, ServedSpan(context=64, layers=("decoder.6", END)))
    assert asyncio.run(last.upload(late, Given(*boundary_chunks(rows, Wire.FLOAT32)))).sides is None  # type: ignore[arg-type]


def test_operations_are_those_that_torch_counts(source: SourceModel, manifest: Manifest) -> None:
    family, picture = source.family, source.family.example(1)
    ids = np.array([[5, 6, source.image_token, *range(7, 37)]])
    given = {**family.as_given([picture]), **family.token_types(ids == source.image_token, [picture.grid])}
    layers = {layer.name: layer for layer in layer_costs(manifest)}
    sizes = request_sizes(manifest, [picture.grid], ids.size)
    source.model.set_attn_implementation("eager")  # the counter does not know every kernel of attention
    with torch.inference_mode(), FlopCounterMode(depth=6, display=False) as counter:
        source.model(
            input_ids=torch.from_numpy(ids), **{name: torch.from_numpy(array) for name, array in given.items()}
        )
    counted = {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}
    for index in range(source.line.decoder):
        layer = layers[f"decoder.{index}"]
        expected = next(count for name, count in counted.items() if name.endswith(f"language_model.layers.{index}"))
        # Torch counts a whole square of attention; a prompt's rows see half of it.
        halved = 0 if layer.across else 4 * layer.attends * ids.size * (ids.size - 1) / 2
        assert layer.prefill_flops(sizes) == pytest.approx(expected - halved, rel=0.02)
        assert (layer.across > 0) == isinstance(family.keeps(index), CrossKeys) == (layer.kv_bytes_per_token == 0)
    crossing = layers["decoder.0"].boundary(sizes)
    assert crossing == (family.rows(picture.grid), manifest.decoder.width)
