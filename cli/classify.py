"""`cutline classify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from cutline.cli import options
from cutline.cli.fields import with_options

EPILOG = "Example: cutline classify card.png 'a photo of a card' 'a photo of a cat' --encoder clip"


class ClassifyOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `cutline classify` is given."""

    encoder: Annotated[Path, "The encoder's bundle or its name, of `cutline export --role encoder`."]
    image: Annotated[list[Path] | None, "A further picture; repeatable."] = None
    template: Annotated[str, "What every text stands in, in place of {}: 'a photo of a {}'."] = "{}"
    threads: options.Threads = None
    provider: options.Provider = None
    as_json: options.Json = False


@with_options
def classify(
    picture: Annotated[Path, typer.Argument(help="An image file.")],
    texts: Annotated[list[str], typer.Argument(help="What it may show; one text or more.")],
    given: ClassifyOptions,
) -> None:
    """Say how well texts fit a picture, with a dual encoder: CLIP or SigLIP.

    A CLIP shares certainty among the texts, so that they add up to 1; a SigLIP says of each by itself how likely it is.
    """
    import sys

    from rich.console import Console
    from rich.table import Table

    from cutline.cli.setting import thread_count
    from cutline.cli.terminal.tables import show_table
    from cutline.devices.profile import CPU
    from cutline.edge.inference.encoder import Encoder
    from cutline.models.hub.library import find_bundle
    from cutline.models.images import read_image_file

    pictures = [picture, *(given.image or ())]
    images = [read_image_file(path) for path in pictures]
    bundle = find_bundle(given.encoder, "encoder")
    encoder = Encoder(bundle, threads=thread_count(given.threads), provider=given.provider or CPU)
    scores = encoder.classify(images, texts, template=given.template)
    if given.as_json:
        found = [
            {
                "image": str(path),
                "scores": [{"text": text, "score": float(score)} for text, score in zip(texts, row, strict=True)],
            }
            for path, row in zip(pictures, scores, strict=True)
        ]
        said = {"model": encoder.manifest.name, "kind": encoder.manifest.scores.kind, "images": found}
        sys.stdout.buffer.write(msgspec.json.encode(said) + b"\n")
        return
    table = Table("picture", "text", "score")
    for path, row in zip(pictures, scores, strict=True):
        for score, text in sorted(zip(row.tolist(), texts, strict=True), key=lambda pair: -pair[0]):
            table.add_row(str(path), text, f"{score:.4f}")
    show_table(Console(highlight=False), table)
