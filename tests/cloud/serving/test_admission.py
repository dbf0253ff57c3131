from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from cutline.cloud.serving import admission as room
from cutline.cloud.serving.admission import ReceivedUpload, Reception, ServedSpan
from cutline.demo.bundles import TARGET
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.errors import ImageError, InputError, WorkerUnavailable
from cutline.models import images
from cutline.models.bundle import read_manifest
from cutline.protos.messages import Open


@pytest.mark.threat("bombs", "late", "spans")
def test_pictures_that_the_prompt_has_no_tokens_for_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file may be a large picture: sixteen of them must not cost more than the prompt says."""
    manifest = read_manifest(TARGET)
    file = next(iter(requests(Split.EVALUATION, 1, seed=3))).image
    decoded = []
    decode = images.decode_image

    def counted(data: bytes, formats: tuple[str, ...]) -> Any:
        decoded.append(data)
        return decode(data, formats)

    monkeypatch.setattr(room, "decode_image", counted)
    tokens = (1, *(manifest.image_token,) * manifest.family.tokens((0, 0)), 5)
    opening = Open(model=manifest.identity, tokens=tokens, prompt_length=len(tokens), max_tokens=4, images=16)
    reception = Reception(manifest, ServedSpan(context=256))
    assert reception.request(opening, ReceivedUpload("", (), (file,))).grids == ((0, 0),)
    decoded.clear()
    with pytest.raises(InputError, match="the prompt holds 16 image tokens, but the images sent give 32"):
        reception.request(opening, ReceivedUpload("", (), (file,) * 16))
    assert decoded == []


def test_no_picture_more_is_decoded_once_nobody_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_manifest(TARGET)
    file = next(iter(requests(Split.EVALUATION, 1, seed=3))).image
    decoded = []
    decode = images.decode_image

    def counted(data: bytes, formats: tuple[str, ...]) -> Any:
        decoded.append(data)
        return decode(data, formats)

    monkeypatch.setattr(room, "decode_image", counted)
    tokens = (1, *(manifest.image_token,) * 4 * manifest.family.tokens((0, 0)), 5)
    opening = Open(model=manifest.identity, tokens=tokens, prompt_length=len(tokens), max_tokens=4, images=4)
    with pytest.raises(WorkerUnavailable, match="nobody waits"):
        Reception(manifest, ServedSpan(context=256)).request(
            opening, ReceivedUpload("", (), (file,) * 4), wanted=lambda: len(decoded) < 2
        )
    assert len(decoded) == 2


@pytest.mark.parametrize(
    ("images", "grids", "times"), [(1, 2, 2), (1, 2, 1), (2, 0, 1), (1, 1, 2), (1, 0, 1), (1, 1, 1), (2, 0, 0)]
)
def test_each_image_that_comes_has_a_time_or_none_has(images: int, grids: int, times: int) -> None:
    """However many grids are said to be."""
    manifest = read_manifest(TARGET)
    tokens = (1, *(manifest.image_token,) * images * manifest.family.tokens((0, 0)), 5)
    opening = Open(
        model=manifest.identity,
        tokens=tokens,
        prompt_length=len(tokens),
        max_tokens=4,
        images=images,
        grids=((0, 0),) * grids,
        times=tuple(range(times)),
    )
    reception = Reception(manifest, ServedSpan(context=256))
    if times in (0, images):
        reception.check(opening)
    else:
        with pytest.raises(InputError, match="each image has one time"):
            reception.check(opening)


@pytest.mark.threat("formats")
@pytest.mark.parametrize("kind", ["AVIF", "BMP", "GIF"])
def test_a_worker_reads_only_what_agents_send(kind: str) -> None:
    manifest, file = read_manifest(TARGET), BytesIO()
    Image.new("RGB", (64, 64)).save(file, kind)
    tokens = (1, *(manifest.image_token,) * manifest.family.tokens((0, 0)), 5)
    opening = Open(model=manifest.identity, tokens=tokens, prompt_length=len(tokens), max_tokens=4, images=1)
    with pytest.raises(ImageError, match="not a readable image"):
        Reception(manifest, ServedSpan(context=256)).request(opening, ReceivedUpload("", (), (file.getvalue(),)))
