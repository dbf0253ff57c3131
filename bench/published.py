"""Published models as they are: `python -m cutline.bench.published FOLDER [--graphs] [--only NAME ...]`.

FOLDER holds JSON files, each a list of sets of configuration files: `[{"id": ..., "files": {NAME: content}}]`. Each set
becomes a folder: its files as they are, but widths and layers reduced, seeded random weights, a tokenizer with the
special tokens that the files name, and what else is missing from those of a whole model of its family. A set of a
family that runs must answer token for token as transformers' `generate` does from the same folder with its own
generation config, alone and with drafts, and see the same pixels as transformers' own processor; or be refused in one
line. With `--graphs` it is exported too: a drafter made of it says the same tokens, and so does a worker that goes on
from what a device's graphs computed, at every cut. A set of another family must be refused in a line that names it.
Exits with 1 where one does otherwise.
"""

from __future__ import annotations

import argparse
import json
import queue
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import torch
from PIL import Image
from rich.console import Console

from cutline.bench.published_models import KINDS, Files, filled, write_folder
from cutline.cloud.engine.engine import Engine
from cutline.cloud.engine.sessions.session import Event
from cutline.cloud.engine.sessions.session_request import SessionRequest
from cutline.cloud.model.model_runner import Capacity, Target
from cutline.core.conversation import question
from cutline.core.sampling import Sampling
from cutline.edge.inference.drafter import Drafter
from cutline.edge.inference.target_prefix import TargetSpan, device_cuts
from cutline.errors import CutlineError, InputError
from cutline.models.bundle import Bundle, Manifest, write_manifest
from cutline.models.export import export_bundle
from cutline.models.export.quiet import quiet
from cutline.models.export.source import SourceModel, read_source
from cutline.models.images import Pixels
from cutline.models.prompt import PromptBuilder
from cutline.protos.messages import Confirmed, Finished
from cutline.testing.models.image_processors import image_processor

STEPS = 12  # tokens of an answer
SIZE = (90, 70)  # of the picture


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a set: `kind` is "same", "refused" or "FAULT", `said` tells more."""

    name: str
    kind: str
    said: str


def sets(folder: Path) -> Iterator[tuple[str, str, Files]]:
    """The family's name by its file, the set's and its files, of every set."""
    for path in sorted(folder.glob("*.json")):
        for one in json.loads(path.read_text()):
            files = {name: said for name, said in one["files"].items() if not name.endswith(".facts.json")}
            yield path.stem, one["id"], files


def family_of(stem: str, files: Files) -> str | None:
    """What transformers calls the family of a set, one of `KINDS`; None for any other."""
    config = files.get("config.json")
    said = config.get("model_type") if isinstance(config, dict) else stem if config is None else None
    return said if said in KINDS else None


def outcome(name: str, kind: str | None, files: Files, *, graphs: bool) -> Outcome:
    """What becomes of a set."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "hf"
        folder.mkdir()
        try:
            if kind is None:
                for file, said in files.items():
                    (folder / file).write_text(said if isinstance(said, str) else json.dumps(said))
                read_source(folder)
                return Outcome(name, "FAULT", "a model of another family was read")
            _written(folder, kind, files)
            return _compared(name, folder, graphs=graphs)
        except InputError as error:
            said = str(error).replace(str(folder), "FOLDER")
            named = kind is not None or _names_family(said, files)
            return Outcome(name, "refused" if named and "\n" not in said else "FAULT", said)
        except Exception as error:  # which is what is looked for
            return Outcome(name, "FAULT", f"{type(error).__name__}: {error}")


def _written(folder: Path, kind: str, files: Files) -> None:
    """The folder, or as much of it as transformers can make a model of."""
    whole = filled(kind, files)
    try:
        write_folder(folder, kind, whole)
    except Exception:  # transformers takes no such config: then neither may we
        read_source(folder)
        raise


def _names_family(said: str, files: Files) -> bool:
    config = files.get("config.json")
    if not isinstance(config, dict):
        return "has no config.json" in said and "supported are" in said
    return str(config.get("model_type") or config.get("architectures")) in said and "supported are" in said


def _compared(name: str, folder: Path, *, graphs: bool) -> Outcome:
    source = read_source(folder, dtype=torch.float32)
    manifest = source.manifest(name="set", role="target", precision="fp32", target=None)
    for file, content in source.companions.items():
        (folder / file).write_bytes(content)
    noise = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), np.uint8)
    picture = Image.fromarray(noise)
    pixels = source.family.preprocess(picture)
    if fault := _other_pixels(source, picture, pixels):
        return Outcome(name, "FAULT", fault)
    ids = PromptBuilder.open(_bundle(folder, manifest)).build([question("What is in it?")], [pixels.grid]).ids
    right = _generated(source, ids, pixels)
    asked = _request(manifest, ids, pixels)
    sessions = {"cloud": asked}
    sessions["drafted"] = replace(asked, draft=right[: STEPS // 2])
    sessions["drafted wrong"] = replace(asked, draft=(*right[:2], *right[:4]))
    bundle, drafter = _exported(folder) if graphs else (_bundle(folder, manifest), None)
    if drafter is not None:
        sessions |= {
            f"split at {cut}": _cut(asked, bundle, cut, pixels, right) for cut in device_cuts(bundle.manifest)[1:]
        }
    answers = _answers(bundle, sessions, right)
    if drafter is not None:
        drafting = Drafter.open(drafter, threads=1).converse(ids, [pixels], Sampling())
        answers["drafter"] = tuple(one.token for one in drafting.draft((), STEPS))
    wrong = [mode for mode, answer in answers.items() if answer != right]
    said = ", ".join(f"{key} {value}" for key, value in msgspec.to_builtins(source.penalties).items())
    return Outcome(name, "FAULT" if wrong else "same", f"other tokens: {wrong}" if wrong else said)


def _bundle(folder: Path, manifest: Manifest) -> Bundle:
    return Bundle(folder, write_manifest(folder, manifest))


def _other_pixels(source: SourceModel, picture: Image.Image, pixels: Pixels) -> str | None:
    theirs = image_processor(source.path, source.family)
    with quiet():
        more = {"crop_to_patches": True} if hasattr(theirs, "crop_to_patches") else {}  # as InternVL's processor says
        made = np.asarray(theirs(images=[picture], return_tensors="np", **more)["pixel_values"])
    values = made
    while values.ndim > pixels.values.ndim:
        values = values[0]
    if values.shape != pixels.values.shape:
        return f"pixels of the shape {pixels.values.shape}, where transformers gives {values.shape}"
    error = float(np.abs(values - pixels.values).max())
    return None if error < 1e-5 else f"pixels differ by {error:.2g}"


def _generated(source: SourceModel, ids: tuple[int, ...], pixels: Pixels) -> tuple[int, ...]:
    """transformers' own answer, greedy, with all else that the folder's generation config says."""
    given = {key: torch.from_numpy(value) for key, value in source.family.as_given([pixels]).items()}
    image_tokens = np.array(ids) == source.image_token
    tokens = torch.from_numpy(source.family.given_ids(np.array(ids), image_tokens))[None]
    types = source.family.token_types(image_tokens[None], [pixels.grid])
    given |= {key: torch.from_numpy(value) for key, value in types.items()}
    with quiet(), torch.inference_mode():
        made = source.model.generate(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), **given, max_new_tokens=STEPS, do_sample=False
        )
    return tuple(made[0, tokens.shape[1] :].tolist())


def _exported(folder: Path) -> tuple[Bundle, Bundle]:
    """The folder as a target, and as a drafter of it."""
    export = partial(export_bundle, folder, precision="fp32", progress=lambda _: None)
    target = export(folder.parent / "target", role="target", name="target")
    return target, export(folder.parent / "drafter", role="drafter", name="drafter", target=target)


def _request(manifest: Manifest, ids: tuple[int, ...], pixels: Pixels) -> SessionRequest:
    grids = (pixels.grid,)
    return SessionRequest(
        tokens=ids,
        prompt_length=len(ids),
        max_tokens=STEPS,
        sampling=Sampling(),
        effort=1.0,
        boundary=pixels.values,
        grids=grids,
        positions=manifest.family.positions(np.array(ids) == manifest.image_token, grids),
        penalties=manifest.penalties,
    )


def _cut(asked: SessionRequest, bundle: Bundle, cut: str, pixels: Pixels, right: tuple[int, ...]) -> SessionRequest:
    """What was `asked`, cut: inside the decoder with the `right` answer as a draft, since every token needs its row."""
    crossing = TargetSpan.open(bundle, cut, threads=1).converse(asked.tokens, [pixels])
    draft = right[:-1] if crossing.deep else ()
    rows = np.concatenate(list(crossing.opening(draft)))
    if not crossing.deep:  # where a stream is a row of its own
        rows = rows.reshape(len(rows) // bundle.manifest.family.streams(bundle.manifest.line, cut), -1)
    return replace(asked, cut=cut, deep=crossing.deep, boundary=rows, draft=draft)


def _answers(
    bundle: Bundle, sessions: Mapping[str, SessionRequest], right: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """What a worker's engine answers to each, as far as its answer is the `right` one, and one step more."""
    context = len(sessions["cloud"].tokens) + STEPS
    engine = Engine(
        Target(bundle, Capacity(slots=1, context=context), dtype=torch.float32), bundle.manifest.stop_tokens
    )
    engine.start()
    answers: dict[str, tuple[int, ...]] = {}
    try:
        for mode, asked in sessions.items():
            inbox, tokens = queue.SimpleQueue[Event](), tuple[int, ...]()
            name = engine.open(asked, (), inbox.put)
            while tokens == right[: len(tokens)] and not isinstance(event := inbox.get(timeout=300), Finished):
                if isinstance(event, CutlineError):
                    raise event
                if isinstance(event, Confirmed):
                    tokens = (*tokens, *event.tokens)
            engine.close(name)
            answers[mode] = tokens
        return answers
    finally:
        engine.stop()


def main() -> None:
    """Run every set and print a line for each; exits with 1 where one is at fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the sets, a JSON file a family")
    parser.add_argument("--graphs", action="store_true", help="export each set too, and ask a drafter of it")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="sets or families to run")
    args = parser.parse_args()
    console, counts = Console(soft_wrap=True, highlight=False), Counter[tuple[str, str]]()
    for stem, name, files in sets(args.folder):
        if args.only and not {stem, name} & set(args.only):
            continue
        kind = family_of(stem, files)
        one = outcome(name, kind, files, graphs=args.graphs)
        counts["of a family that runs" if kind else "of another family", one.kind] += 1
        console.print(f"{one.name}: {one.kind}: {one.said}", markup=False)
    for (group, kind_), count in sorted(counts.items()):
        console.print(f"{group}: {kind_}: {count}")
    sys.exit(1 if any(kind_ == "FAULT" for _, kind_ in counts) else 0)


if __name__ == "__main__":
    main()
