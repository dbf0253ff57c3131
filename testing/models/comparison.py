"""Compares a split model with transformers' own unsplit one: boundaries, logits and answers.

A device's graphs compute what crosses a cut from images and tokens; a worker's target goes on from that, one prompt
alone and four in one ragged pass, and answers greedily. Both are compared with the model run whole: the boundary with
its hidden states, the logits of every token of the prompt with its logits (largest difference as a share of the largest
value), the answer with `generate`. All in fp32, in one process.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cutline.cloud.engine.sessions.session import Session
from cutline.cloud.engine.sessions.session_request import SessionRequest
from cutline.cloud.engine.sessions.session_rows import SessionRows
from cutline.cloud.model.loader import load_model
from cutline.cloud.model.model_runner import Capacity, Target
from cutline.core.sampling import Sampling
from cutline.edge.inference.decoder import Decoder, DecoderState
from cutline.edge.inference.vision_encoder import VisionSpan
from cutline.models.bundle import SPAN_WEIGHTS, Bundle, Manifest, Precision, span_file
from cutline.models.export import export_bundle, make
from cutline.models.families import Grid
from cutline.models.images import Pixels, times_of
from cutline.testing.models.random_models import Small, make_smolvlm_256m
from cutline.testing.models.small_models import QWEN_TOOLS, SMALL

TOLERANCE = 1e-3
THREADS = 2  # of a session of ONNX Runtime; torch's follow OMP_NUM_THREADS
PROMPTS = (  # sizes of the images in each
    ((180, 100),),
    ((200, 140), (60, 120)),
    (),
    (),
)


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """Seeded tokens, and the images of the image tokens among them."""

    ids: tuple[int, ...]
    images: tuple[Pixels, ...]

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The grids of the images."""
        return tuple(image.grid for image in self.images)

    @property
    def times(self) -> tuple[int, ...]:
        """At which time each of the images stands."""
        return times_of(self.images)


@dataclass(frozen=True, slots=True)
class Compared:
    """The largest errors at one cut with `batch` prompts in a pass, and whether all answers are equal."""

    cut: str
    batch: int
    boundary: float
    logits: float
    same: bool

    @property
    def holds(self) -> bool:
        """Whether the split model equals the unsplit one."""
        return self.boundary <= TOLERANCE and self.logits <= TOLERANCE and self.same


def seeded_prompts(manifest: Manifest) -> list[Prompt]:
    """One prompt for each of PROMPTS, of different lengths."""
    dice = np.random.default_rng(0)
    words = [token for token in range(manifest.decoder.vocabulary) if token != manifest.image_token]

    def text(length: int) -> list[int]:
        return [int(token) for token in dice.choice(words, length)]

    family, prompts = manifest.family, []
    for sizes in PROMPTS:
        images, ids = [], [] if family.images_first else text(int(dice.integers(2, 9)))
        for width, height in sizes[: family.most_images]:
            noise = dice.integers(0, 256, (height, width, 3), np.uint8)
            images.append(family.preprocess(Image.fromarray(noise)))
            ids += [manifest.image_token] * family.tokens(images[-1].grid) + text(3)
        prompts.append(Prompt((*ids, *text(5)), tuple(images)))
    return prompts


class Whole:
    """transformers' own, unsplit model."""

    def __init__(self, bundle: Bundle) -> None:
        self._manifest = bundle.manifest
        self._model = load_model(bundle)
        self._model.generation_config.eos_token_id = None  # so that answers have the requested length

    @torch.inference_mode()
    def run(self, prompt: Prompt) -> tuple[dict[str, NDArray[np.float32]], torch.Tensor]:
        """The boundary at each cut but `image`, and the logits (n, vocabulary)."""
        states: dict[str, NDArray[np.float32]] = {}

        def keep(cut: str) -> Callable[[Any, Any, Any], None]:
            def hook(_: Any, given: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]) -> None:
                rows = given[0] if given else named["hidden_states"]
                states[cut] = rows.flatten(0, -2).numpy()

            return hook

        hooks = [module.register_forward_pre_hook(keep(cut), with_kwargs=True) for cut, module in self._behind()]

        def keep_last(_: Any, __: Any, made: Any) -> None:
            states["connector"] = (made if isinstance(made, torch.Tensor) else made[0]).flatten(0, -2).numpy()

        beside: list[torch.Tensor] = []  # what goes into the decoder's first layers

        def keep_beside(_: Any, __: Any, given: dict[str, Any]) -> None:
            beside.extend(given.get("deepstack_visual_embeds") or ())
            if (across := given.get("cross_attention_states")) is not None:
                states["beside"] = across.flatten(0, -2).numpy()

        family = self._manifest.family
        decoder, last = family.parts.modules(self._model).decoder, family.parts.modules(self._model).tower[-1][-1]
        hooks.append(last.register_forward_hook(keep_last))
        hooks.append(decoder.register_forward_pre_hook(keep_beside, with_kwargs=True))
        given = self._given(prompt)
        logits: torch.Tensor = self._model(**given).logits[0]
        for hook in hooks:
            hook.remove()
        if (real := given.get("pixel_attention_mask")) is not None and real.dim() == 2:  # patches, padded to as many
            self._drop_fills(states, real.flatten().bool())
        if (at := given.get("image_position_ids")) is not None:
            self._drop_fills(states, (at >= 0).all(-1).flatten())
        places = np.array(prompt.ids) == self._manifest.image_token
        sides = states.pop("beside", None)
        self._add_streams(states, [stream.numpy() for stream in beside], places)
        states["decoder.0"] = states["decoder.0"][places] if sides is None else sides
        return states, logits

    def _drop_fills(self, states: dict[str, NDArray[np.float32]], real: torch.Tensor) -> None:
        """Leave of the states within the tower those of `real` patches (n,)."""
        line = self._manifest.line
        for cut in states.keys() & set(line.layers[: line.place("decoder.0")]):
            states[cut] = states[cut][real.numpy()]

    def _add_streams(
        self, states: dict[str, NDArray[np.float32]], beside: list[NDArray[np.float32]], places: NDArray[np.bool_]
    ) -> None:
        """Put behind each of `states` the streams that later layers take beside it."""
        line, taps = self._manifest.line, self._manifest.family.taps
        own = dict(states)
        for cut in states:
            if cut in line.layers[: line.place("decoder.0")]:
                made = [line.layers[line.place(f"vision.{tap}") + 1] for tap in taps]
                streams = [own[after] for after in made if line.place(after) <= line.place(cut)]
            elif self._manifest.family.layer_inputs:
                streams = [own["decoder.0"]] * (self._manifest.family.streams(line, cut) - 1)
            else:
                streams = [np.zeros_like(own[cut]) for _ in range(self._manifest.family.streams(line, cut) - 1)]
                for whole, rows in zip(streams, beside[line.decoder_layer(cut) :], strict=False):
                    whole[places] = rows
            states[cut] = np.concatenate([own[cut], *streams], axis=1)

    @torch.inference_mode()
    def answer(self, prompt: Prompt, steps: int) -> list[int]:
        """Decode `steps` tokens greedily."""
        given = self._given(prompt)
        made = self._model.generate(**given, do_sample=False, max_new_tokens=steps)
        answer: list[int] = made[0, given["input_ids"].shape[1] :].tolist()
        return answer

    def _behind(self) -> Iterator[tuple[str, Any]]:
        """The module after each cut, whose input is the boundary; at decoder.0 that includes the text."""
        made = self._manifest.family.parts.modules(self._model)
        yield from ((f"vision.{index}", layer[0]) for index, layer in enumerate(made.tower))
        yield from ((f"decoder.{index}", layer) for index, layer in enumerate(made.layers))
        yield "head", made.last[0]

    def _given(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        ids, family = np.array(prompt.ids), self._manifest.family
        image_tokens = ids == self._manifest.image_token
        arrays = {
            "input_ids": family.given_ids(ids, image_tokens)[None],
            **family.as_given(prompt.images),
            **family.token_types(image_tokens[None], prompt.grids),
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


class ImageRows:
    """The boundaries at the cuts up to `decoder.0`, by the device's graphs; each is computed once."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._made: dict[tuple[str, Prompt], NDArray[np.float32]] = {}
        self._last: tuple[str, VisionSpan] | None = None

    def of(self, prompt: Prompt, cut: str) -> NDArray[np.float32]:
        """The boundary (n, width) of a prompt's images, or at `image` their pixels."""
        if (cut, prompt) not in self._made:
            rows = np.concatenate([image.values for image in prompt.images] or [np.empty((0, 1), np.float32)])
            if cut != "image":
                rows = self._span(cut)(rows, prompt.grids)
            self._made[cut, prompt] = rows
        return self._made[cut, prompt]

    def _span(self, cut: str) -> VisionSpan:
        if self._last is None or self._last[0] != cut:
            self._last = cut, VisionSpan.open(self._bundle, cut, threads=THREADS)
        return self._last[1]


class Device:
    """The layers `[image, cut)` in the device's graphs."""

    def __init__(self, bundle: Bundle, cut: str, rows: ImageRows) -> None:
        self.cut = cut
        self.deep = cut in bundle.manifest.line.deep_cuts
        self.manifest = bundle.manifest
        self._rows = rows
        self._prefix = Decoder.open_prefix(bundle, cut, threads=THREADS) if self.deep else None

    def begin(self, prompt: Prompt) -> tuple[NDArray[np.float32], DecoderState | None]:
        """The boundary for a prompt, and the state of the decoder's layers before the cut, if there are any."""
        rows = self._rows.of(prompt, "decoder.0" if self.deep else self.cut)
        if self._prefix is None:
            return rows, None
        image_tokens = np.array(prompt.ids) == self.manifest.image_token
        embedded = self._prefix.embed(prompt.ids)
        embedded[image_tokens, : rows.shape[1]] = rows
        state = self._prefix.new_state(self.manifest.family.positions(image_tokens, prompt.grids, prompt.times))
        return state.extend(embedded), state

    def go_on(self, state: DecoderState | None, token: int) -> NDArray[np.float32] | None:
        """The boundary row of one more token; None at a cut up to `decoder.0`."""
        return None if state is None or self._prefix is None else state.extend(self._prefix.embed([token]))


def compare(device: Device, target: Target, prompts: Sequence[Prompt], expected: Sequence[Expected]) -> Compared:
    """Run `prompts` in one batch with the cut where `device` ends, and compare with the `expected` results."""
    begun = [device.begin(prompt) for prompt in prompts]
    sessions = [
        _session(device, prompt, slot, boundary)
        for slot, (prompt, (boundary, _)) in enumerate(zip(prompts, begun, strict=True))
    ]
    batch = [
        SessionRows(session, 0, prompt.ids, len(prompt.ids) - 1, boundary if device.deep else None)
        for session, prompt, (boundary, _) in zip(sessions, prompts, begun, strict=True)
    ]
    images = [
        target.encode(boundary, device.cut, session.request.grids) if prompt.images and not device.deep else None
        for session, prompt, (boundary, _) in zip(sessions, prompts, begun, strict=True)
    ]
    logits = target.run(batch, images)
    wrong = max(_error(found.numpy(), right.logits.numpy()) for found, right in zip(logits, expected, strict=True))
    crossed = [
        _error(boundary, right.states[device.cut])
        for prompt, (boundary, _), right in zip(prompts, begun, expected, strict=True)
        if device.cut in right.states and (prompt.images or device.deep)
    ]
    answers = [[int(found[-1].argmax())] for found in logits]
    for _ in range(len(expected[0].answer) - 1):
        batch = [
            SessionRows(session, len(prompt.ids) + len(answer) - 1, (answer[-1],), 0, device.go_on(state, answer[-1]))
            for session, prompt, answer, (_, state) in zip(sessions, prompts, answers, begun, strict=True)
        ]
        for answer, found in zip(answers, target.run(batch, [None] * len(batch)), strict=True):
            answer.append(int(found[-1].argmax()))
    same = answers == [right.answer for right in expected]
    return Compared(device.cut, len(prompts), max(crossed, default=0.0), wrong, same)


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """The whole model's results for a prompt."""

    states: dict[str, NDArray[np.float32]]
    logits: torch.Tensor
    answer: list[int]


def expect(whole: Whole, prompts: Sequence[Prompt], steps: int) -> list[Expected]:
    """The results for each of `prompts`, with `steps` tokens of its answer."""
    return [Expected(*whole.run(prompt), whole.answer(prompt, steps)) for prompt in prompts]


def compare_cuts(bundle: Bundle, cuts: Sequence[str], *, steps: int, alone: int = 1) -> Iterator[Compared]:
    """Compare each cut with the first `alone` prompts one by one, then with all of them in one pass."""
    prompts = seeded_prompts(bundle.manifest)
    expected = expect(Whole(bundle), prompts, steps)
    context = max(len(prompt.ids) for prompt in prompts) + steps
    target = Target(bundle, Capacity(slots=len(prompts), context=context))
    rows = ImageRows(bundle)
    for cut in cuts:
        device = Device(bundle, cut, rows)
        for index in range(alone):
            yield compare(device, target, prompts[index : index + 1], expected[index : index + 1])
        yield compare(device, target, prompts, expected)


def _session(device: Device, prompt: Prompt, slot: int, boundary: NDArray[np.float32]) -> Session:
    image_tokens = np.array(prompt.ids) == device.manifest.image_token
    request = SessionRequest(
        tokens=prompt.ids,
        prompt_length=len(prompt.ids),
        max_tokens=1,
        sampling=Sampling(),
        effort=1.0,
        cut=device.cut,
        deep=device.deep,
        boundary=boundary,
        grids=prompt.grids,
        positions=device.manifest.family.positions(image_tokens, prompt.grids, prompt.times),
    )
    return Session("parity", request, slot, limit=len(prompt.ids) + 1)


def _error(found: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    """The largest difference as a share of the largest value; infinite if the shapes differ."""
    return float(np.abs(found - right).max() / np.abs(right).max()) if found.shape == right.shape else float("inf")


def smolvlm_256m(place: Path, *, depth: tuple[int, int] = (12, 30)) -> Bundle:
    """A target of SmolVLM-256M's shape, with so many layers of tower and decoder."""
    make_smolvlm_256m(place / "hf", dtype=torch.float32, longest_edge=512, depth=depth)
    return _exported(place)


def small_target(name: str, place: Path, *, models: Mapping[str, Small] = SMALL) -> Bundle:
    """A target of the small model `name`, a key of `models`."""
    models[name].write(place / "hf")
    return _exported(place)


def tool_pair(place: Path) -> None:
    """A small model whose template has tools, as a target in the folder `target` and as its `drafter`."""
    QWEN_TOOLS.write(place / "hf")
    _exported(place).path.rename(place / "target")
    target = Bundle.open(place / "target")
    quantized(target, place / "drafter")


def quantized(target: Bundle, out: Path, *, precision: Precision = "int8") -> Bundle:
    """A drafter of the target's own weights in int8, with its tower: it is right most of the time; in fp32 always."""

    def copied(_: Any, __: Any, folder: Path, cuts: Sequence[str]) -> float:
        for name in (SPAN_WEIGHTS, *map(span_file, cuts)):
            shutil.copy(target.file(name), folder / name)
        return 0.0

    with patch.object(make, "export_vision", copied):  # torch's exporter takes most of an export's time
        return export_bundle(
            target.path.parent / "hf",
            out,
            role="drafter",
            precision=precision,
            name="seeded",
            target=target,
            progress=lambda progress: None,
        )


def _exported(place: Path) -> Bundle:
    out = place / "bundle"
    return export_bundle(
        place / "hf", out, role="target", precision="fp32", name="seeded", progress=lambda progress: None
    )
