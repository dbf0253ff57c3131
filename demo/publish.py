"""From trained models to bundles: `python -m cutline.demo.publish --models DIR --out DIR`.

Exports the target, then the drafter made for it, calibrates the drafter's gate, and draws a few example cards.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console

from cutline.cli.calibrate import calibrate
from cutline.cli.export import shown_steps
from cutline.core.storage.files import write_file
from cutline.demo.cards import Split
from cutline.demo.requests import requests
from cutline.demo.shapes import FAMILY
from cutline.models.export import export_bundle

# Evaluation digits are by other hands than calibration digits, so the demo asks for more than it promises.
RISK, RESERVE = 0.05, 0.03
EXAMPLES = Path(__file__).parent / "examples"


def write_processor(folder: Path) -> None:
    """Say in a folder how its model sees a card: as one tile."""
    side = {"longest_edge": FAMILY.tile}
    said = {"do_image_splitting": False, "size": side, "max_image_size": side}
    write_file(folder / "preprocessor_config.json", json.dumps(said).encode())


def publish(models: Path, out: Path) -> None:
    """Make `out`/target and `out`/drafter from the Hugging Face folders `models`/target and `models`/drafter."""
    for role in ("target", "drafter"):
        write_processor(models / role)
    with shown_steps(Console(stderr=True), []) as show:
        target = export_bundle(
            models / "target", out / "target", role="target", precision="fp32", name="digit-cards-target", progress=show
        )
        export_bundle(
            models / "drafter",
            out / "drafter",
            role="drafter",
            precision="int8",
            name="digit-cards-drafter",
            target=target,
            progress=show,
        )
    calibrate(bundle=out / "drafter", target=out / "target", risk=RISK, reserve=RESERVE)


def draw_examples(count: int = 4) -> None:
    """Evaluation cards as files, for people to ask about."""
    EXAMPLES.mkdir(exist_ok=True)
    for index, image in enumerate(dict.fromkeys(request.image for request in requests(Split.EVALUATION, count, 42))):
        write_file(EXAMPLES / f"card{index + 1}.png", image)


def main() -> None:
    """Publish, and draw the examples anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True, help="folder of the trained models")
    parser.add_argument("--out", type=Path, required=True, help="folder for the bundles")
    args = parser.parse_args()
    publish(args.models, args.out)
    draw_examples()


if __name__ == "__main__":
    main()
