"""Dual encoders in fp32 and int8, at published shapes: `python -m cutline.bench.encoders [--only NAME]`.

Exports a model of the shape with seeded weights and a small vocabulary in both precisions, and times the rows of a
picture and of a text on one thread, in turn, so that a slow spell of the machine hits both. Says what the bundles
weigh, without the table of tokens, and the cosine between the rows of both.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image
from rich.console import Console

from cutline.edge.inference.encoder import Encoder
from cutline.models.bundle import Precision
from cutline.models.images import as_png
from cutline.testing.models.encoders import exported
from cutline.testing.models.random_encoders import make_encoder

WIDE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_TEXT = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
SHAPES: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "CLIP ViT-B/32": (
        "clip",
        {
            "vision": WIDE | {"image_size": 224, "patch_size": 32},
            "text": CLIP_TEXT | {"max_position_embeddings": 77},
            "images": {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}},
        },
    ),
    "SigLIP base, 224 pixels": (
        "siglip",
        {
            "vision": WIDE | {"image_size": 224, "patch_size": 16},
            "text": WIDE | {"max_position_embeddings": 64, "projection_size": 768},
            "images": {"size": {"height": 224, "width": 224}},
        },
    ),
}
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
TEXT = "a photo of a cat"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=SHAPES, help="one of the shapes")
    parser.add_argument("--runs", type=int, default=15)
    args = parser.parse_args()
    console = Console(highlight=False)
    for name in SHAPES if args.only is None else (args.only,):
        with tempfile.TemporaryDirectory() as folder:
            measure(name, Path(folder), runs=args.runs, console=console)


def measure(name: str, folder: Path, *, runs: int, console: Console) -> None:
    """Measure one shape, with its files in `folder`."""
    kind, sizes = SHAPES[name]
    source = make_encoder(kind, folder / "source", **sizes)
    encoders = {one: Encoder(exported(source, folder / one, one), threads=1) for one in PRECISIONS}
    picture = as_png(Image.linear_gradient("L").convert("RGB").resize((640, 480)))
    works: dict[str, Callable[[Encoder], Any]] = {
        "picture": lambda encoder: encoder.embed_images([picture]),
        "text": lambda encoder: encoder.embed_texts([TEXT], fresh=True),
    }
    for precision, encoder in encoders.items():
        size = sum(file.stat().st_size for file in encoder.bundle.path.iterdir())
        console.print(f"{name}, {precision}: {size / 1e6:.0f} MB without its table of tokens")
    for what, work in works.items():
        rows = [work(encoder) for encoder in encoders.values()]
        taken = {precision: list[float]() for precision in encoders}
        for _ in range(runs):
            for precision, encoder in encoders.items():
                taken[precision].append(seconds(work, encoder))
        times = [f"{one} {1e3 * min(all_):.1f} ms (median {1e3 * median(all_):.1f})" for one, all_ in taken.items()]
        console.print(
            f"{name}, a {what}: {', '.join(times)}; cosine {float((rows[0] * rows[1]).sum()):.4f}", soft_wrap=True
        )


def seconds(work: Callable[[Encoder], Any], encoder: Encoder) -> float:
    """Wall-clock seconds of one run."""
    began = time.perf_counter()
    work(encoder)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
