"""What a boundary tells of the picture.

    python -m cutline.bench.privacy [--write BUNDLE] [--plot docs/explanation/privacy.png]

For every cut and wire format an attacker (cutline.bench.inversion) learns to paint pictures from boundaries, on cards
of the training scans, and is tried on cards that neither he nor the models have seen. Beside how near the pixels come
stands what can still be read: the target itself is asked about the painted pictures. A blind guess paints the mean card
for every boundary. With `--write` what was recovered goes into the target's bundle, for plans that bound it.
"""

from __future__ import annotations

import argparse
import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from skimage.metrics import structural_similarity
from torch import Tensor

from cutline.bench.inversion import learn, paint
from cutline.bench.plot_file import save_plot
from cutline.core.conversation import question
from cutline.core.wire import Wire
from cutline.demo.bundles import TARGET
from cutline.demo.cards import Split, draw
from cutline.demo.reference import Reference
from cutline.demo.requests import CardRequest, requests
from cutline.errors import BundleError
from cutline.models.bundle import Bundle, write_calibration
from cutline.models.images import decode_image
from cutline.models.prices import Leak, open_prices
from cutline.models.prompt import PromptBuilder
from cutline.protos.tensors import decode_tensor, encode_tensor

KINDS = ("read", "colour")  # of questions that painted pictures are asked
NOISY = ("vision.2", "decoder.0")
NOISES = (0.1, 0.3, 1.0, 3.0)  # standard deviations, as shares of a row's root mean square


@dataclass(frozen=True, slots=True)
class Found:
    """What an attacker recovered: the share of variance, PSNR (dB), SSIM, and shares of right answers by kind."""

    recovered: float
    psnr: float
    ssim: float
    read: dict[str, float]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cards", type=int, default=3000, help="that the attacker learns from")
    parser.add_argument("--steps", type=int, default=600, help="of learning, each time")
    parser.add_argument("--tried", type=int, default=100, help="cards that he is tried on")
    parser.add_argument("--wires", default="fp32,int8,int4", help="formats; another tells no more than fp32 does")
    parser.add_argument("--write", type=Path, metavar="BUNDLE", help="the target's bundle to write the leaks into")
    parser.add_argument("--plot", type=Path, help="painted pictures, a row a cut")
    args = parser.parse_args()
    console, bundle = Console(width=120), Bundle.open(TARGET)
    wires = [Wire(name) for name in args.wires.split(",")]
    reference = Reference(bundle)
    asked = [one for one in requests(Split.EVALUATION, args.tried, seed=17) if one.question.kind in KINDS]
    truth = np.stack([np.asarray(decode_image(image)) for image in dict.fromkeys(one.image for one in asked)])
    known = draw(Split.TRAIN, args.cards, np.random.default_rng(5), augment=True).pixels
    sight, trial = Sight(bundle, reference), Trial(truth, known.mean(axis=0), Reading(reference, asked))

    table = Table(title="Recovered of cards that the attacker never saw", title_justify="left")
    _columns(table, "cut", "format")
    blind = np.broadcast_to(trial.blind, truth.shape).round().astype(np.uint8)
    for name, pictures in (("the card itself", truth), ("a blind guess", blind)):
        _add(table, name, "", found=trial.of(pictures))
    leaks: list[Leak] = []
    painted = {"card": truth}
    priced = Table(title="With Gaussian noise on the boundary, fp32", title_justify="left")
    _columns(priced, "cut", "noise", "target right", "epsilon")
    with Progress(console=console, transient=True) as progress:
        seen, met = sight.boundaries(known), sight.boundaries(truth)
        rounds = len(seen) * len(wires) + len(NOISY) * len(NOISES)
        task = progress.add_task("learning", total=rounds * args.steps)
        goal = torch.from_numpy(known).permute(0, 3, 1, 2).float() / 255

        def attack(rows: Tensor, others: Tensor, blur: Callable[[Tensor], Tensor] = _as_it_is) -> NDArray[np.uint8]:
            painter = learn(rows, goal, steps=args.steps, seed=3, advance=lambda: progress.advance(task), blur=blur)
            return _bytes(paint(painter, blur(others)))

        for cut, wire in product(seen, wires):
            made = attack(through(seen[cut], wire), through(met[cut], wire))
            found = trial.of(made)
            _add(table, cut, wire, found=found)
            leaks.append(Leak(cut=cut, wire=wire, recovered=found.recovered))
            painted.setdefault(cut, made)
        for cut, share in product(NOISY, NOISES):
            found = trial.of(attack(seen[cut], met[cut], partial(noisy, share=share)))
            with sight.blurred(cut, share):
                right = fmean(trial.reading.shares(truth).values())
            _, rows, width = seen[cut].shape
            _add(priced, cut, f"{share:g}", f"{right:.0%}", f"{epsilon(share, width, rows=rows):,.0f}", found=found)
    console.print(table)
    console.print(priced)
    if args.write is not None:
        write(Bundle.open(args.write), leaks)
    if args.plot is not None:
        plot(painted, args.plot)


class Sight:
    """What crosses each cut after `image`: the rows of the image's patches or tokens."""

    def __init__(self, bundle: Bundle, reference: Reference) -> None:
        manifest = bundle.manifest
        self._manifest = manifest
        self._model = reference.model
        prompt = PromptBuilder.open(bundle).build([question("Read the digits.")], [(0, 0)]).ids
        self._prompt = torch.tensor([prompt])
        # The image's tokens, before those of the question: so they are the same in every prompt.
        self.places = torch.nonzero(self._prompt[0] == manifest.image_token).squeeze(1)
        made = manifest.family.parts.modules(self._model)
        # A cut's boundary is what the layer after it takes; only `decoder.0` takes words as well.
        self.takes: dict[str, Any] = {f"vision.{index}": layer[0] for index, layer in enumerate(made.tower)}
        self.takes["connector"] = made.connector[0]
        self.takes |= {f"decoder.{index}": layer for index, layer in enumerate(made.layers)}
        self.takes["head"] = made.last[0]
        self._decoder = frozenset(manifest.line.deep_cuts) | {"decoder.0"}

    @torch.inference_mode()
    def boundaries(self, pictures: NDArray[np.uint8]) -> dict[str, Tensor]:
        """Boundaries (n, rows, width) of `pictures` (n, side, side, 3), by cut."""
        caught: dict[str, list[Tensor]] = {cut: [] for cut in self.takes}

        def catch(cut: str) -> Callable[..., None]:
            def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                rows = args[0] if args else kwargs["hidden_states"]
                caught[cut].append(rows[:, self.places] if cut in self._decoder else rows)

            return hook

        hooks = [module.register_forward_pre_hook(catch(cut), with_kwargs=True) for cut, module in self.takes.items()]
        for start in range(0, len(pictures), 100):
            self._run(pictures[start : start + 100])
        for hook in hooks:
            hook.remove()
        return {cut: torch.cat(rows) for cut, rows in caught.items()}

    @contextmanager
    def blurred(self, cut: str, share: float) -> Iterator[None]:
        """The reference with noise on what crosses at `cut`: inside the decoder on the rows of all tokens."""

        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            rows = (args[0] if args else kwargs["hidden_states"]).clone()
            if cut != "decoder.0":
                rows = noisy(rows, share)
            elif rows.shape[1] > 1:  # a prompt, whose words the worker embeds itself; not a token of the answer
                rows[:, self.places] = noisy(rows[:, self.places], share)
            return ((rows, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": rows})

        handle = self.takes[cut].register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _run(self, pictures: NDArray[np.uint8]) -> None:
        family = self._manifest.family
        pixels = np.concatenate([family.preprocess(Image.fromarray(one)).values for one in pictures])
        count = len(pictures)
        self._model(
            input_ids=self._prompt.expand(count, -1), pixel_values=torch.from_numpy(pixels)[:, None], use_cache=False
        )


class Reading:
    """What a reader makes of pictures: the target, asked about each what was asked about the card."""

    def __init__(self, reference: Reference, asked: Sequence[CardRequest]) -> None:
        self._reference = reference
        self._asked = asked

    def shares(self, pictures: NDArray[np.uint8]) -> dict[str, float]:
        """Shares of right answers by kind; `pictures` in the order of the cards."""
        images = dict.fromkeys(one.image for one in self._asked)
        files = dict(zip(images, map(_png, pictures), strict=True))
        right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
        for one in self._asked:
            answer = self._reference.text(self._reference.answer(files[one.image], one.question.text))
            right[one.question.kind].append(answer == one.question.answer)
        return {kind: fmean(found) for kind, found in right.items()}


class Trial:
    """How near pictures (n, side, side, 3) come to the `truth`, beside a `blind` guess at all of them."""

    def __init__(self, truth: NDArray[np.uint8], blind: NDArray[np.float64], reading: Reading) -> None:
        self._truth = truth
        self.blind = blind
        self.reading = reading

    def of(self, pictures: NDArray[np.uint8]) -> Found:
        """What `pictures` recover."""
        error = ((pictures - self._truth.astype(np.float64)) ** 2).mean()
        guess = ((self.blind - self._truth) ** 2).mean()
        alike = [structural_similarity(a, b, channel_axis=-1) for a, b in zip(pictures, self._truth, strict=True)]
        return Found(
            recovered=float(min(max(0.0, 1 - error / guess), 1.0)),
            psnr=float(10 * np.log10(255**2 / error)) if error else math.inf,
            ssim=fmean(alike),
            read=self.reading.shares(pictures),
        )


def through(rows: Tensor, wire: Wire) -> Tensor:
    """Boundary rows (n, rows, width) as they arrive in a format."""
    if wire is Wire.FLOAT32:
        return rows
    return torch.stack([torch.from_numpy(decode_tensor(encode_tensor(one.numpy(), wire))) for one in rows])


def noisy(rows: Tensor, share: float) -> Tensor:
    """Rows with Gaussian noise whose standard deviation is a `share` of each row's root mean square."""
    return rows + share * rows.square().mean(dim=-1, keepdim=True).sqrt() * torch.randn_like(rows)


def epsilon(share: float, width: int, *, rows: int, delta: float = 1e-5) -> float:
    """The (epsilon, delta) that such noise would give `rows` rows of a picture, where any row may become any other.

    That is if all rows had one length that everybody knows. They differ by twice that at most, so noise of a `share` of
    their root mean square is `share / (2 * sqrt(width))` of their sensitivity; by zero-concentrated differential
    privacy (Bun and Steinke, 2016). Real rows differ in length, and the noise's strength tells it: so they have no such
    guarantee, and this is the best that could be said.
    """
    rho = rows * 2 * width / share**2
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))


def write(bundle: Bundle, leaks: Sequence[Leak]) -> None:
    """Put `leaks` beside the prices of a target's bundle. Raises BundleError where it has none."""
    prices = open_prices(bundle)
    if prices is None:
        raise BundleError(f"{bundle.path} has no prices; run `cutline calibrate` first")
    write_calibration(bundle, msgspec.structs.replace(prices, leaks=tuple(leaks)))


def plot(painted: dict[str, NDArray[np.uint8]], path: Path) -> None:
    """The first ten cards, and below what was painted of them from each cut."""
    figure, axes = plt.subplots(len(painted), 10, figsize=(8, 0.85 * len(painted)), dpi=110)
    for line, (cut, pictures) in zip(axes, painted.items(), strict=True):
        line[0].text(-0.2, 0.5, cut, transform=line[0].transAxes, ha="right", va="center", fontsize=8)
        for place, picture in zip(line, pictures, strict=False):
            place.imshow(picture)
            place.axis("off")
    figure.subplots_adjust(left=0.12, right=0.995, top=0.995, bottom=0.005, wspace=0.03, hspace=0.03)
    save_plot(figure, path)


def _as_it_is(rows: Tensor) -> Tensor:
    return rows


def _bytes(pictures: Tensor) -> NDArray[np.uint8]:
    whole: NDArray[np.uint8] = (pictures.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    return whole


def _png(picture: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def _columns(table: Table, *names: str) -> None:
    for name in names:
        table.add_column(name, justify="left" if name in ("cut", "format") else "right")
    for name in ("of the variance", "PSNR", "SSIM", "digits read", "colours named"):
        table.add_column(name, justify="right")


def _add(table: Table, *cells: str, found: Found) -> None:
    table.add_row(
        *cells,
        f"{found.recovered:.1%}",
        f"{found.psnr:.1f} dB",
        f"{found.ssim:.2f}",
        *(f"{found.read[kind]:.0%}" for kind in KINDS),
    )


if __name__ == "__main__":
    main()
