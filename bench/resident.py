"""What the layers before a cut take in memory: `python -m cutline.bench.resident BUNDLE CUT`.

Runs them once, on an image of 1024 by 768 pixels, and prints the bytes that this process has resident then; at `image`
those of the same process without a model. It imports nothing that a device would not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import psutil
from PIL import Image

from cutline.core.conversation import question
from cutline.edge.inference.target_prefix import TargetSpan
from cutline.models.bundle import Bundle
from cutline.models.prompt import PromptBuilder


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("cut")
    args = parser.parse_args()
    target = Bundle.open(args.bundle, "device")
    pixels = target.manifest.family.preprocess(Image.new("RGB", (1024, 768), "teal"))
    prompt = PromptBuilder.open(target).build([question("Describe the picture.")], [pixels.grid]).ids
    if args.cut != "image":
        for _ in TargetSpan.open(target, args.cut, threads=1).converse(prompt, [pixels]).opening(()):
            pass
    print(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    main()
