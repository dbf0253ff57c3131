"""Images: parity with transformers' own processor, hostile files, and uploads that change nothing."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from transformers.image_transforms import convert_to_rgb
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from cutline.errors import ImageError
from cutline.models import images
from cutline.models.families.smolvlm import SmolVLM
from cutline.models.images import TRAVELLING, decode_image, read_header

WHOLE = SmolVLM(tile=64, patch=8, tile_tokens=16, longest_edge=64, split=False)
STRETCHED = SmolVLM(
    tile=32, patch=8, tile_tokens=4, longest_edge=96, split=False, mean=(0.48, 0.45, 0.4), std=(0.27, 0.26, 0.28)
)
SPLIT = SmolVLM(tile=32, patch=8, tile_tokens=4, longest_edge=128, split=True)
ODD = SmolVLM(tile=24, patch=8, tile_tokens=4, longest_edge=95, split=True)
SPECS = (WHOLE, STRETCHED, SPLIT, ODD)

sides = st.integers(8, 200)
shapes = st.tuples(sides, sides).filter(lambda shape: max(shape) <= 20 * min(shape))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def save(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG made by hand, its pixels all zero."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    row = 1 + width * channels * depth // 8
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(bytes(row)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    written = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def theirs(image: Image.Image, spec: SmolVLM) -> tuple[np.ndarray[Any, Any], int, int]:
    processor = SmolVLMImageProcessorPil(
        size={"longest_edge": spec.longest_edge},
        max_image_size={"longest_edge": spec.tile},
        do_image_splitting=spec.split,
        image_mean=list(spec.mean),
        image_std=list(spec.std),
    )
    out = processor.preprocess(image, return_row_col_info=True)
    return np.asarray(out["pixel_values"][0]), out["rows"][0][0], out["cols"][0][0]


@pytest.mark.parametrize("spec", SPECS)
@given(shape=shapes, seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_pixels_are_bit_for_bit_those_of_transformers(spec: SmolVLM, shape: tuple[int, int], seed: int) -> None:
    image = noise(*shape, seed=seed)
    pixels = spec.preprocess(image)
    expected, rows, cols = theirs(image, spec)
    assert pixels.grid == (rows, cols) == spec.grid(shape)
    assert spec.takes(pixels.grid)
    assert pixels.values.dtype == np.float32
    np.testing.assert_array_equal(pixels.values, expected)
    assert max(pixels.grid) <= spec.grid_limit


def test_the_published_spec_is_at_parity_too() -> None:
    spec = SmolVLM(tile=512, patch=8, tile_tokens=64, longest_edge=2048, split=True)
    image = noise(301, 200)
    pixels = spec.preprocess(image)
    expected, rows, cols = theirs(image, spec)
    assert (pixels.grid, pixels.values.shape) == ((rows, cols), (13, 3, 512, 512))
    np.testing.assert_array_equal(pixels.values, expected)


@pytest.mark.threat("aspect")
@given(
    shape=st.tuples(st.integers(8, 4000), st.integers(8, 4000)), longest=st.integers(16, 300), tile=st.integers(8, 64)
)
def test_no_shape_makes_more_tiles_than_the_limit(shape: tuple[int, int], longest: int, tile: int) -> None:
    spec = SmolVLM(tile=tile, patch=8, tile_tokens=1, longest_edge=longest, split=True)
    _, (width, height) = spec._sizes(shape)
    assert max(width, height) // tile <= spec.grid_limit


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA"])
def test_every_plain_mode_becomes_the_rgb_that_transformers_makes(mode: str) -> None:
    source = noise(20, 12).convert("RGBA")
    source.putalpha(Image.linear_gradient("L").resize((20, 12)))
    source = source.convert("P").convert("PA") if mode == "PA" else source.convert(mode)
    data = save(source.convert("RGBA") if mode == "PA" else source)
    image = decode_image(data)
    assert (image.mode, image.info) == ("RGB", {})
    np.testing.assert_array_equal(np.asarray(image), convert_to_rgb(Image.open(BytesIO(data)), return_numpy=True))


@pytest.mark.parametrize("transparency", [3, bytes(range(256))])
def test_a_palette_with_transparency_is_laid_on_white(transparency: int | bytes) -> None:
    data = save(noise(20, 12).quantize(256), transparency=transparency)
    expected = convert_to_rgb(Image.open(BytesIO(data)), return_numpy=True)
    np.testing.assert_array_equal(np.asarray(decode_image(data)), expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(noise(24, 16), kind, exif=exif.tobytes())
    expected = ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB")
    assert decode_image(data).tobytes() == expected.tobytes()


def test_a_phones_jpeg_with_a_second_picture_gives_the_first() -> None:
    photo = noise(24, 16)
    data = save(photo, "MPO", save_all=True, append_images=[noise(24, 16, seed=1)], quality=100)
    assert Image.open(BytesIO(data)).format == "MPO"
    assert decode_image(data).tobytes() == Image.open(BytesIO(data)).convert("RGB").tobytes()


def test_a_cmyk_jpeg_becomes_the_rgb_that_transformers_makes() -> None:
    data = save(noise(40, 24).convert("CMYK"), "JPEG")
    expected = convert_to_rgb(Image.open(BytesIO(data)), return_numpy=True)
    np.testing.assert_array_equal(np.asarray(decode_image(data)), expected)


@pytest.mark.parametrize("kind", ["BMP", "GIF", "AVIF"])
def test_everyday_formats_are_taken(kind: str) -> None:
    data = save(noise(40, 24), kind)
    header, image = read_header(data), decode_image(data)
    assert (header.format, header.size, header.travels) == (kind, (40, 24), False)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(BytesIO(data)).convert("RGB")))


def test_of_a_gif_it_is_the_first_picture_on_white() -> None:
    first = Image.new("P", (24, 16), 1)
    first.putpalette([0, 0, 0, 200, 10, 10])
    first.paste(0, (0, 0, 12, 16))
    data = save(first, "GIF", save_all=True, append_images=[noise(24, 16).quantize(16)], transparency=0, disposal=2)
    image = np.asarray(decode_image(data))
    assert (image[:, :12] == 255).all()
    assert (image[:, 12:] == (200, 10, 10)).all()


def test_heic_is_taken_where_the_plugin_is(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = pytest.importorskip("pillow_heif")
    plugin.register_heif_opener()
    photo = noise(8, 6).resize((64, 48), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = save(photo, "HEIF", quality=90, exif=exif.tobytes())
    header, image = read_header(data), decode_image(data)
    assert header.size == image.size == (48, 64)
    expected = np.asarray(photo.transpose(Image.Transpose.ROTATE_270)).astype(int)
    assert np.abs(np.asarray(image) - expected).mean() < 8
    with pytest.raises(ImageError, match="not a readable image"):
        decode_image(data, TRAVELLING)
    monkeypatch.setattr(images, "_reads_heic", lambda: False)
    with pytest.raises(ImageError, match="extra `heic`"):
        read_header(data)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_large_photograph_is_taken_at_half_its_size(progressive: bool) -> None:
    """24 megapixels, held upright, as today's phones write them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = Image.linear_gradient("L").resize((6000, 4000)).convert("RGB")
    data = save(plain, "JPEG", exif=exif.tobytes(), progressive=progressive)
    header, image = read_header(data), decode_image(data)
    assert (header.reduced, header.travels) == (True, False)
    assert header.size == image.size == (2000, 3000)
    expected = plain.transpose(Image.Transpose.ROTATE_270).resize((2000, 3000), Image.Resampling.BOX)
    assert np.abs(np.asarray(image).astype(int) - np.asarray(expected)).max() < 8


def test_a_photograph_within_the_limit_is_not_reduced() -> None:
    data = save(Image.new("RGB", (4000, 3000), "teal"), "JPEG")  # 12 megapixels
    assert read_header(data) == images.Header("JPEG", (4000, 3000), reduced=False, memory=8 * 12_000_000)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_header_says_what_the_picture_will_be(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(noise(24, 16), kind, exif=exif.tobytes())
    assert read_header(data).size == decode_image(data).size


def test_what_turns_a_png_may_stand_behind_its_pixels() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = save(noise(24, 16), exif=exif.tobytes())
    at = data.index(b"eXIf") - 4
    length = 12 + struct.unpack(">I", data[at : at + 4])[0]
    late = data[:at] + data[at + length : -12] + data[at : at + length] + data[-12:]
    assert read_header(late).size == (24, 16)
    assert decode_image(late).tobytes() == decode_image(data).tobytes()


@pytest.mark.threat("bombs")
@pytest.mark.parametrize(
    ("kind", "options", "most"),
    [
        ("PNG", {}, 8),
        ("JPEG", {}, 8),
        ("JPEG", {"progressive": True, "subsampling": 2}, 8),  # 3 for the coefficients, 4 for the picture
        ("JPEG", {"progressive": True, "subsampling": 0}, 10),
        ("WEBP", {}, 16),
        ("AVIF", {}, 16),
    ],
)
def test_what_decoding_takes_is_known_from_the_header(kind: str, options: dict[str, Any], most: int) -> None:
    data = save(Image.new("RGB", (96, 64), "teal"), kind, **options)
    assert read_header(data).memory == most * 96 * 64


def scan_bomb() -> bytes:
    """A small progressive JPEG that repeats one scan 100 times."""
    data = save(Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    start = data.index(b"\xff\xda", data.index(b"\xff\xda") + 1)
    end = data.index(b"\xff", start + 2)
    return data[:start] + data[start:end] * 100 + data[start:]


def resized(data: bytes, width: int, height: int, *, scans: int = 0) -> bytes:
    """A JPEG whose header says another size; its last scan stands there so many times more."""
    at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) + 5
    last = data.rindex(b"\xff\xda")
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 : last] + data[last:-2] * scans + data[last:]


# Each is made when it is asked for: some take a second.
BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty"),
    "not an image": (lambda: b"this is text, no image", "JPEG, PNG or WebP"),
    "another format": (lambda: save(noise(16, 16), "TIFF"), "JPEG, PNG or WebP"),
    "header only": (lambda: save(noise(16, 16))[:20], "JPEG, PNG or WebP"),
    "truncated PNG": (lambda: save(noise(64, 64))[:3000], "truncated"),
    "truncated JPEG": (lambda: save(noise(64, 64), "JPEG")[:2000], "truncated"),
    "truncated WebP": (lambda: save(noise(64, 64), "WEBP")[:1000], "truncated|JPEG, PNG or WebP"),
    "one pixel": (lambda: png(1, 1), "1x1 pixels; each side needs at least 8"),
    "thin": (lambda: png(8, 161), "crop it"),
    "bomb": (lambda: png(13000, 13000, colour=0), "13000x13000 pixels, over 16 megapixels"),
    "huge bomb": (lambda: png(20000, 20000, colour=0)[:5000], "over 16 megapixels"),
    "JPEG bomb": (lambda: resized(save(noise(16, 16), "JPEG"), 8200, 8200), "8200x8200 pixels, over 67 megapixels"),
    "huge JPEG bomb": (lambda: resized(save(noise(16, 16), "JPEG"), 65000, 65000), "over 67 megapixels"),
    "HEIC that is none": (lambda: b"\0\0\0\x18ftypheic" + bytes(64), "JPEG, PNG or WebP|heic"),
    "16-bit grey": (lambda: png(16, 16, depth=16, colour=0), "16 bits a channel"),
    "16-bit RGB": (lambda: png(16, 16, depth=16), "16 bits a channel"),
    "16-bit RGBA": (lambda: png(16, 16, depth=16, colour=6), "16 bits a channel"),
    "animated PNG": (lambda: save(noise(16, 16), save_all=True, append_images=[noise(16, 16, seed=1)]), "animated"),
    "animated WebP": (
        lambda: save(noise(16, 16), "WEBP", save_all=True, append_images=[noise(16, 16, seed=1)]),
        "animated",
    ),
    "animated AVIF": (
        lambda: save(noise(16, 16), "AVIF", save_all=True, append_images=[noise(16, 16, seed=1)]),
        "animated",
    ),
    "many coefficients": (
        lambda: resized(save(noise(16, 16), "JPEG", progressive=True, subsampling=0), 8000, 8000),
        "decoding the image takes [0-9]+ MiB, over 256",
    ),
    "scans of a large one": (
        lambda: resized(save(noise(16, 16), "JPEG", progressive=True), 8000, 8000, scans=20),
        "too many scans",
    ),
    "scan bomb": (scan_bomb, "too many scans"),
    "segment bomb": (lambda: b"\xff\xd8" + b"\xff\xe0\x00\x02" * 100_000, "too many scans or segments"),
    "too many bytes": (lambda: bytes(images.MAX_BYTES + 1), "32 MiB"),
}


@pytest.mark.threat("bombs", "formats", "aspect")
@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_gives_one_clear_line(name: str) -> None:
    make, said = BAD[name]
    data = make()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(ImageError, match=said) as caught:
            decode_image(data)
    text = str(caught.value)
    assert len(text) < 120
    assert "\n" not in text
    assert "BytesIO" not in text
    assert warned == []


@pytest.mark.threat("bombs", "formats")
def test_the_bomb_is_small_and_the_librarys_own_guard_stands() -> None:
    assert len(BAD["bomb"][0]()) < 200_000
    assert Image.MAX_IMAGE_PIXELS == 1024**3 // 4 // 3
    assert images.REDUCTION**2 * images.MAX_PIXELS < Image.MAX_IMAGE_PIXELS


SEEDS = [save(noise(24, 16), kind) for kind in ("JPEG", "PNG", "WEBP")] + [
    save(noise(24, 16), "JPEG", progressive=True),
    save(noise(24, 16).quantize(16), transparency=b"\0\x80"),
]


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_bytes_give_a_picture_or_an_image_error(data: st.DataObject) -> None:
    damaged = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = decode_image(bytes(damaged[: data.draw(st.integers(1, len(damaged)))]))
    except ImageError:
        return
    assert image.mode == "RGB"


@pytest.mark.parametrize("spec", SPECS)
@given(
    shape=shapes,
    kind=st.sampled_from(["JPEG", "PNG", "WEBP"]),
    flat=st.booleans(),
    comment=st.binary(max_size=4000),
)
@settings(max_examples=40, deadline=None)
def test_an_upload_never_grows_and_gives_the_same_pixels(
    spec: SmolVLM, shape: tuple[int, int], kind: str, flat: bool, comment: bytes
) -> None:
    exif = Image.Exif()
    exif[0x9286] = comment
    data = save(Image.new("RGB", shape, "teal") if flat else noise(*shape), kind, exif=exif.tobytes())
    image = decode_image(data)
    upload = spec.shrink(data, image)
    assert len(upload) <= len(data)
    there, here = spec.preprocess(decode_image(upload)), spec.preprocess(image)
    assert there.grid == here.grid
    np.testing.assert_array_equal(there.values, here.values)


def test_a_large_image_shrinks_to_what_the_tower_sees() -> None:
    data = save(noise(640, 480))
    upload = WHOLE.shrink(data, decode_image(data))
    assert decode_image(upload).size == (64, 48)
    assert len(upload) < len(data) // 20


@pytest.mark.parametrize(
    ("image", "spec"),
    [
        pytest.param(noise(100, 75), SPLIT, id="it would grow"),
        pytest.param(noise(200, 200), ODD, id="fitting it again would change it"),
        pytest.param(noise(200, 11), WHOLE, id="it would be too thin to be taken"),
    ],
)
def test_an_image_that_cannot_shrink_goes_up_as_it_is(image: Image.Image, spec: SmolVLM) -> None:
    data = save(image)
    assert spec.shrink(data, decode_image(data)) == data
