"""Families that look at videos: frames, pixels, words and positions are those of transformers' own processors.

Their video processors need torchvision, which is not here: what of them runs without it is compared, and pixels with
the image processors of the same models.
"""

from __future__ import annotations

import importlib
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor, smart_resize
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import (
    DEFAULT_MEDIA_OUTTRO,
    DEFAULT_VIDEO_INTRO,
    FRAME_TIMESTAMP_MESSAGE,
)
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor
from transformers.video_utils import VideoMetadata

from cutline.models.families import Family, family_from
from cutline.models.families.internvl import InternVL
from cutline.models.families.qwen.qwen2vl import Qwen2VL
from cutline.models.families.qwen.qwen3vl import Qwen3VL
from cutline.models.families.qwen.qwen25vl import Qwen25VL
from cutline.models.families.qwen.qwenvl import QwenVL
from cutline.models.families.qwen.settings import read_sampling
from cutline.models.families.qwen.video import USUAL, QwenSampling
from cutline.models.families.smolvlm import SmolSampling, SmolVLM
from cutline.models.video import Footage, spread, strip


def imported(name: str) -> Any:
    """A video processor's module, which is not imported without torchvision; what is asked of it here needs none."""
    torchvision = ["torchvision.transforms.v2.functional".rsplit(".", up)[0] for up in range(4)]
    with patch.dict(sys.modules, {module: Mock() for module in torchvision}):
        return importlib.import_module(f"transformers.models.{name}")


qwen2_videos = imported("qwen2_vl.video_processing_qwen2_vl")
Qwen2VLVideoProcessor: Any = qwen2_videos.Qwen2VLVideoProcessor
InternVLVideoProcessor: Any = imported("internvl.video_processing_internvl").InternVLVideoProcessor

SMOL = SmolVLM(tile=64, patch=8, tile_tokens=16, longest_edge=256, split=True, sampling=SmolSampling(1.0, 16, 128))
QWEN = Qwen3VL(
    patch=16,
    merge=2,
    frames=2,
    tower_head=24,
    tower_theta=1e4,
    min_pixels=1024,
    max_pixels=65536,
    theta=1e6,
    sections=(8, 8, 8),
    table=8,
    deepstack=(1,),
    sampling=QwenSampling(least_pixels=4096, most_pixels=200_000),
)
SIDES: dict[str, Any] = {"patch": 14, "merge": 2, "frames": 2, "tower_head": 24, "tower_theta": 1e4, "theta": 1e6}
AREA: dict[str, Any] = {"min_pixels": 784, "max_pixels": 80_000, "sections": (8, 8, 8)}
FILMED = QwenSampling(least_pixels=3136, most_pixels=60_000)
QWEN2 = Qwen2VL(**SIDES, **AREA, sampling=FILMED)
QWEN25 = Qwen25VL(**SIDES, **AREA, window=112, full=(1,), pace=2.0, sampling=FILMED)
INTERN = InternVL(tile=64, patch=16, tile_tokens=4, least=1, most=6)
FOOTAGES = [(1, 5.0), (3, 30.0), (10, 2.0), (48, 24.0), (90, 29.97), (250, 25.0), (600, 10.0), (5000, 30.0)]
SIZES = [(64, 48), (333, 217), (217, 333), (40, 30), (20, 200), (640, 360), (1000, 999)]


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def metadata(frames: int, rate: float) -> VideoMetadata:
    return VideoMetadata(total_num_frames=frames, fps=rate, duration=frames / rate)


@pytest.mark.parametrize("most", [32, 5])
@pytest.mark.parametrize(("frames", "rate"), FOOTAGES)
def test_frames_are_sampled_as_there(frames: int, rate: float, most: int) -> None:
    smol, qwen = SMOL.video, QWEN.video
    assert smol is not None
    assert qwen is not None
    theirs: Any = SimpleNamespace(num_frames=min(16, most), fps=1.0)
    expected = SmolVLMVideoProcessor.sample_frames(theirs, metadata(frames, rate))
    assert smol.sample(Footage(frames, rate), most) == tuple(expected.tolist())
    theirs = SimpleNamespace(fps=2.0, min_frames=min(4, most), max_frames=min(768, most))
    expected = Qwen3VLVideoProcessor.sample_frames(theirs, metadata(frames, rate))
    assert qwen.sample(Footage(frames, rate), most) == tuple(expected.tolist())
    if frames > 1:  # of which those make a pair
        theirs = SimpleNamespace(
            fps=2.0, min_frames=min(4, most), max_frames=min(768, most), temporal_patch_size=2, num_frames=None
        )
        expected = Qwen2VLVideoProcessor.sample_frames(theirs, metadata(frames, rate))
        for family in (QWEN2, QWEN25):
            assert family.video is not None
            assert family.video.sample(Footage(frames, rate), most) == tuple(expected.tolist())
    theirs = SimpleNamespace(initial_shift=True)
    expected = InternVLVideoProcessor.sample_frames(theirs, metadata(frames, rate), num_frames=min(8, most, frames))
    assert INTERN.video.sample(Footage(frames, rate), most) == tuple(expected.tolist())


@pytest.mark.parametrize("family", [SMOL, QWEN, QWEN2, QWEN25, INTERN], ids=lambda family: type(family).__name__)
@given(frames=st.integers(1, 9999), rate=st.floats(0.5, 120.0), most=st.integers(1, 99))
@example(frames=367, rate=24.0, most=32)  # where theirs asks for a frame behind the last
def test_frames_are_those_that_there_are(family: Family, frames: int, rate: float, most: int) -> None:
    assert family.video is not None
    sampled = family.video.sample(Footage(frames, rate), most)
    assert 1 <= len(sampled) <= most
    assert list(sampled) == sorted(set(sampled))
    assert set(sampled) <= set(range(frames))


@pytest.mark.parametrize("size", SIZES)
def test_pixels_of_smolvlms_frames_are_those_of_pictures_that_are_not_cut(size: tuple[int, int]) -> None:
    mode = SMOL.video
    assert mode is not None
    theirs = SmolVLMImageProcessorPil(
        size={"longest_edge": 128}, max_image_size={"longest_edge": 64}, do_image_splitting=False
    )
    expected = np.asarray(theirs(images=[noise(size)], return_tensors="np")["pixel_values"])[0]
    frame = mode.fit(noise(size), 7)
    assert frame.size == mode.looked(size, 7) == (64, 64)
    found = SMOL.piece_pixels(strip([frame]))
    np.testing.assert_array_equal(found.values, expected)
    assert (found.grid, SMOL.piece_grid(frame.size), SMOL.piece_grid((64, 63))) == ((0, 0), (0, 0), None)


@pytest.mark.parametrize("frames", [1, 2, 3, 8, 31])
@pytest.mark.parametrize("size", SIZES)
def test_qwens_frames_have_the_size_that_they_have_there(size: tuple[int, int], frames: int) -> None:
    mode = QWEN.video
    assert mode is not None
    down, across = smart_resize(max(frames, 2), size[1], size[0], factor=32, min_pixels=4096, max_pixels=200_000)
    assert mode.looked(size, frames) == (across, down)
    assert QWEN2.video is not None
    down, across = qwen2_videos.smart_resize(size[1], size[0], factor=28, min_pixels=3136, max_pixels=60_000)
    assert QWEN2.video.looked(size, frames) == (across, down)


@pytest.mark.parametrize(("family", "there"), [(QWEN, Qwen3VLVideoProcessor), (QWEN25, Qwen2VLVideoProcessor)])
@pytest.mark.parametrize("size", SIZES)
def test_pixels_of_qwens_pieces_are_those_of_its_patches(size: tuple[int, int], family: QwenVL, there: Any) -> None:
    """Its video processor's own patches, of frames that its filter has resized."""
    mode = family.video
    assert mode is not None
    frames = [mode.fit(noise(size, seed), 3) for seed in range(3)]
    tensor = torch.stack([torch.from_numpy(np.asarray(one).transpose(2, 0, 1).copy()) for one in frames])
    mean, std = (torch.tensor(one)[:, None, None] for one in (family.mean, family.std))
    scaled = (tensor.to(torch.float32) * (1 / 255) - mean) / std
    how = {"patch_size": family.patch, "merge_size": 2, "temporal_patch_size": 2}
    patches, count, rows, cols = there.patchify(SimpleNamespace(), scaled[None], **how)
    pieces = [family.piece_pixels(strip(pair)) for pair in (frames[:2], [frames[2]] * 2)]
    assert [piece.grid for piece in pieces] == [(rows, cols)] * count
    np.testing.assert_allclose(np.concatenate([piece.values for piece in pieces]), patches[0].numpy(), atol=1e-6)
    same = [family.preprocess(frames[0]), family.piece_pixels(strip([frames[0]] * 2))]
    if family.fitted(frames[0].size) == frames[0].size:
        np.testing.assert_array_equal(same[0].values, same[1].values, "a picture is a piece whose frames are alike")


@pytest.mark.parametrize(("rate", "frames"), [(2.0, 8), (0.5, 6), (7.3, 9), (30.0, 4), (1.0, 1)])
def test_positions_of_qwens_videos_are_those_of_transformers(rate: float, frames: int) -> None:
    """A picture, a video, a second video right behind words, and words: of each model by its own count of time."""
    count = -(-frames // 2)
    grids, films = [(4, 6)], [(4, 4), (2, 8)]
    kinds = [0, 0, *[1] * 6, 0, *[2] * (4 * count), 0, 0, *[2] * (4 * count), *[0] * 5]
    types = torch.tensor([kinds])
    given: Any = {
        "input_ids": types,
        "mm_token_type_ids": types,
        "image_grid_thw": torch.tensor([[1, 4, 6]]),
        "video_grid_thw": torch.tensor([[count, *grid] for grid in films]),
    }
    seconds = [SimpleNamespace(sampled_fps=rate)] * 2
    processed: Any = {"video_grid_thw": given["video_grid_thw"], "video_metadata": seconds}
    processor: Any = Qwen2_5_VLProcessor.__new__(Qwen2_5_VLProcessor)
    processor.video_processor = Mock(return_value=processed, temporal_patch_size=2)
    processor.video_token = None
    intervals = torch.tensor(processor._process_videos(None)[0]["second_per_grid_ts"])
    places = [*grids, *(grid for grid in films for _ in range(count))]
    kinds_of: list[tuple[QwenVL, Any, dict[str, Any]]] = [
        (QWEN2, Qwen2VLModel, {}),
        (QWEN25, Qwen2_5_VLModel, {"second_per_grid_ts": intervals}),
    ]
    for family, model, more in kinds_of:
        vision = SimpleNamespace(spatial_merge_size=2, tokens_per_second=2)
        theirs: Any = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
        theirs.get_vision_position_ids = model.get_vision_position_ids.__get__(theirs)
        expected, deltas = model.get_rope_index(theirs, **given, **more)
        assert family.video is not None
        clock = family.video.clock(frames, frames / rate)
        assert clock is not None
        found = family.positions(np.array(kinds) > 0, places, (0, *clock, *clock))
        np.testing.assert_array_equal(found.prompt, expected[:, 0].numpy())
        assert found.at(len(kinds), len(kinds) + 1).tolist() == [[len(kinds) + deltas.item()]] * 3


def test_words_are_those_of_the_processors() -> None:
    mode, times = QWEN.video, [0.0, 0.5, 1.04, 1.5, 2.26]
    assert mode is not None
    theirs: Any = SimpleNamespace(
        video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2),
        vision_start_token="[",
        vision_end_token="]",
        video_token="*",
        _calculate_timestamps=lambda *given: Qwen3VLProcessor._calculate_timestamps(theirs, *given),
    )
    given = {
        "video_grid_thw": np.array([[3, 2, 2]]),
        "video_metadata": [SimpleNamespace(fps=100.0, frames_indices=[round(100 * at) for at in times])],
    }
    expected = Qwen3VLProcessor.replace_video_token(theirs, given, 0)
    *words, last = mode.words(times, 3.0)
    assert "".join(f"{one}[*]" for one in words) == expected
    assert last == ""
    mode = SMOL.video
    assert mode is not None
    intro = DEFAULT_VIDEO_INTRO.format(frame_count="three", video_duration=str(timedelta(seconds=3725)))
    stamps = [FRAME_TIMESTAMP_MESSAGE.format(timestamp=at) for at in ("00:00", "01:05", "62:05")]
    assert mode.words([0.9, 65.0, 3725.5], 3725.9) == (intro + stamps[0], *stamps[1:], DEFAULT_MEDIA_OUTTRO)
    theirs = SimpleNamespace(start_image_token="[", end_image_token="]", image_token="*", image_seq_length=1)
    expected = InternVLProcessor.replace_video_token(theirs, {"pixel_values_videos": [np.empty((3, 1))]}, 0)
    *words, last = INTERN.video.words([0.0, 1.0, 2.0], 3.0)
    assert "\n".join(f"{one}[*]" for one in words) == expected, "each line is ended by the template, behind an image"
    assert last == ""
    for number, word in {1: "one", 13: "thirteen", 20: "twenty", 32: "thirty-two", 64: "sixty-four"}.items():
        assert f"of {word} frames" in mode.words([0.0] * number, 1.0)[0]


def test_what_a_folder_says_of_videos_is_in_its_bundle_and_what_says_nothing_is_as_before() -> None:
    for family in (SMOL, QWEN, QWEN2, QWEN25):
        fields = msgspec.to_builtins(family)
        assert family_from(fields) == family
        del fields["sampling"]
        older = family_from(fields)
        assert older.video is None
        assert "sampling" not in msgspec.to_builtins(older), "the identity of a bundle made of it stays the same"
        assert family.is_alike(older), "a drafter that was exported before is still of the pair"
    with pytest.raises(ValueError, match="rate"):
        family_from(msgspec.to_builtins(SMOL) | {"sampling": {"rate": 0, "most": 4, "longest_edge": 64}})


def test_frames_for_models_without_a_mode_are_evenly_spread() -> None:
    assert (spread(3, 8), spread(10, 1), spread(10, 2), spread(10, 4)) == ((0, 1, 2), (0,), (0, 9), (0, 3, 6, 9))


def test_settings_are_read_from_a_folder(tmp_path: Path) -> None:
    from cutline.models.families.smolvlm import _sampling as of_smol

    said = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 512}}
    assert of_smol(said) == {"sampling": {"rate": 1.0, "most": 64, "longest_edge": 512}}
    with pytest.raises(ValueError, match="video_sampling"):
        of_smol({"fps": 1})
    fields = {"patch": 16, "merge": 2, "frames": 2, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    published = {
        "size": {"longest_edge": 25165824, "shortest_edge": 4096},
        "patch_size": 16,
        "image_mean": [0.5, 0.5, 0.5],
        "video_processor_type": "Qwen3VLVideoProcessor",
    }
    kind = "Qwen3VLVideoProcessor"
    found = read_sampling(published, kind, fields)
    assert found == QwenSampling(least_pixels=4096, most_pixels=25165824, rate=2.0, least=4, most=768)
    for other in ({"patch_size": 14}, {"image_mean": [0.4] * 3}, {"size": None}, {"video_processor_type": "Other"}):
        assert read_sampling(published | other, kind, fields) is None
    theirs = Qwen2VLVideoProcessor
    usual = {"shortest_edge": USUAL.least_pixels, "longest_edge": USUAL.most_pixels}
    assert (usual, USUAL.least, USUAL.most) == (theirs.size, theirs.min_frames, theirs.max_frames)


@pytest.mark.parametrize("size", SIZES)
def test_pixels_of_internvls_frames_are_those_of_pictures_of_one_tile(size: tuple[int, int]) -> None:
    whole = msgspec.structs.replace(INTERN, most=1)
    frame = INTERN.video.fit(noise(size), 3)
    assert frame.size == INTERN.video.looked(size, 3) == (64, 64)
    found = INTERN.piece_pixels(strip([frame]))
    np.testing.assert_array_equal(found.values, whole.preprocess(noise(size)).values)
    assert (found.grid, INTERN.piece_grid(frame.size), INTERN.piece_grid((64, 65))) == ((0, 0), (0, 0), None)
