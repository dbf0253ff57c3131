"""Image files that aim at decoders nobody needs, and at the number of tiles."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cutline.core.request import Request
from cutline.demo.bundles import TARGET
from cutline.edge.generation.preprocess import Preparer
from cutline.errors import ImageError
from cutline.models.bundle import Bundle, read_manifest
from cutline.models.decode_budget import give_back
from cutline.models.families.smolvlm import SmolVLM
from cutline.models.images import FORMATS, MAX_ASPECT, MIN_SIDE, decode_image
from cutline.models.prompt import PromptBuilder

PUBLISHED = SmolVLM(tile=512, patch=16, tile_tokens=64, longest_edge=2048, split=True)

# How files of formats begin that have decoders in Pillow and are no everyday pictures.
BEGINNINGS = {
    "FITS": b"SIMPLE  =                    T".ljust(80) + b"BITPIX  =                    8".ljust(80),
    "FPX": bytes.fromhex("d0cf11e0a1b11ae1"),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
    "PSD": b"8BPS\0\1" + bytes(20),
    "WMF": bytes.fromhex("d7cdc69a0000") + bytes(40),
    "JPEG2000": bytes.fromhex("0000000c6a5020200d0a870a"),
    "AVIF": b"\0\0\0\x1cftypavif" + bytes(16),
    "ICNS": b"icns\0\0\0\x20" + bytes(24),
    "GIF": b"GIF89a\x09\0\x09\0\0\0\0",
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "DDS": b"DDS \x7c\0\0\0",
    "BLP": b"BLP2\1\0\0\0",
    "FLI": b"\0\0\0\0\x11\xaf",
    "PCX": b"\x0a\5\1\1",
    "TIFF": b"II*\0\x08\0\0\0",
    "BigTIFF": b"II\x2b\0\x08\0\0\0",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "XPM": b"/* XPM */",
}


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of formats that are not taken and whose decoder was asked all the same."""
    Image.init()
    asked: list[str] = []

    def watched(name: str) -> Any:
        return lambda *_: asked.append(name)

    for name in set(Image.OPEN) - set(FORMATS):
        monkeypatch.setitem(Image.OPEN, name, (watched(name), watched(name)))
    return asked


@pytest.mark.threat("formats")
@pytest.mark.parametrize("name", BEGINNINGS)
def test_no_other_decoder_sees_a_file(name: str, reached: list[str]) -> None:
    with pytest.raises(ImageError, match=r"not a readable image|extra `heic`"):
        decode_image(BEGINNINGS[name] + bytes(4096))
    assert reached == []


@pytest.mark.threat("formats")
@pytest.mark.parametrize("name", ["DIB", "ICO", "PCX", "PPM", "SGI", "TGA", "TIFF", "SPIDER"])
def test_a_good_picture_of_another_format_is_refused(name: str, reached: list[str]) -> None:
    file = io.BytesIO()
    Image.new("F" if name == "SPIDER" else "L", (64, 64)).save(file, name)
    with pytest.raises(ImageError, match="not a readable image"):
        decode_image(file.getvalue())
    assert reached == []


@pytest.mark.threat("aspect")
@pytest.mark.parametrize("family", [read_manifest(TARGET).family, PUBLISHED])
def test_small_pictures_are_little_work(family: Any) -> None:
    """The worst of all shapes that are taken costs no more than the largest picture does; a dot is not taken."""
    for size in ((1, 1), (1, 9000), (MIN_SIDE - 1, 64), (MIN_SIDE, MIN_SIDE * MAX_ASPECT + 1)):
        file = io.BytesIO()
        Image.new("RGB", size).save(file, "PNG")
        with pytest.raises(ImageError, match=r"at least|crop"):
            decode_image(file.getvalue())
    most = max(family.tokens((rows, cols)) for rows in range(9) for cols in range(9) if family.takes((rows, cols)))
    for short in (MIN_SIDE, 50, 300):
        for long in (short, short * 3, short * MAX_ASPECT):
            assert family.tokens(family.grid((long, short))) <= most
            assert family.takes(family.grid((short, long)))


@pytest.mark.threat("bombs", "late")
def test_large_pictures_at_once_take_what_one_takes_and_give_it_back() -> None:
    """Eight of 16.8 megapixels with transparency, some 65 kB each, in as many threads: 335 MB each at the same time."""
    file = io.BytesIO()
    Image.new("RGBA", (4096, 4096), (200, 30, 30, 128)).save(file, "PNG", compress_level=9)
    bundle = Bundle.open(TARGET, "device")
    prompts = PromptBuilder.open(bundle)
    ready = Preparer(bundle.manifest, prompts, None, planned=False, fresh=True)
    small = io.BytesIO()
    Image.new("RGB", (64, 64)).save(small, "PNG")
    ready.prepare(Request.about(small.getvalue(), "What is it?"))
    give_back()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    rest = memory("VmRSS")
    threads = [
        threading.Thread(target=ready.prepare, args=(Request.about(file.getvalue(), "What is it?"),)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert memory("VmHWM") - rest < 400
    assert memory("VmRSS") - rest < 20


def memory(kind: str) -> float:
    """What this process takes, in MB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind))
    return int(line.split()[1]) / 1000
