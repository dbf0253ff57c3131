"""`cutline ask`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from cutline.cli import options
from cutline.cli.fields import Without, with_options
from cutline.cli.options import AgentOptions, WorkerKeys
from cutline.core.constraint import MAX_BYTES, Constraint, Grammar
from cutline.core.request import Mode, Request
from cutline.core.sampling import Sampling, chosen_seed
from cutline.core.storage.files import read_regular
from cutline.errors import InputError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from cutline.edge.agent import Agent
    from cutline.edge.generation.events import Event
    from cutline.edge.generation.result import Answer

FILMS = (".mp4", ".mov", ".webm", ".mkv", ".avi")
EPILOG = "Example: cutline ask card.png 'Read the digits.' --mode auto --worker 127.0.0.1:50051"


class AnswerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the question is to be answered: fields of a request, under their own names."""

    max_tokens: Annotated[int, "Tokens of the answer at most."] = 64
    effort: Annotated[float, "0: the worker only verifies; 1: it decodes whenever it can."] = 1.0
    cut: Annotated[
        str, "First layer of the target that the worker runs: image, vision.0, ..., decoder.0, ..., head."
    ] = "image"
    wire: Annotated[str, "Format of what crosses a later cut: fp32, fp16, bf16, int8, int4."] = "fp32"
    keep_image_tokens: Annotated[
        float, "Share of the image tokens that enter the decoder, from decoder.0 on; the rest is merged."
    ] = 1.0
    noise: Annotated[
        float, "Gaussian noise on what crosses a later cut than image, as a share of each row's root mean square."
    ] = 0.0
    exact: Annotated[bool, "With mode auto, plan only what gives the target's own tokens."] = False
    image_must_stay: Annotated[bool, "Likewise: neither the picture nor its bare patches leave the device."] = False
    max_latency_ms: Annotated[float | None, "Likewise: what may be predicted, also if the gate passes it on."] = None
    min_agreement: Annotated[
        float | None,
        "Likewise: share of answers that must be the target's own, where that was measured; without it, 0.9.",
    ] = None
    max_leak: Annotated[
        float | None,
        "Likewise: share of the picture that an attacker may recover, as measured; what nobody measured leaks all.",
    ] = None
    timeout: Annotated[float, "Seconds to wait for the worker."] = 60.0
    priority: Annotated[
        str, "interactive, normal or background: of requests that are there at once the higher go first."
    ] = "interactive"
    correct_seconds: Annotated[
        float,
        typer.Option(
            "--correct", help="Seconds to look for a worker that verifies what this device had to finish alone."
        ),
    ] = 0.0


class FormatOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the answer has to keep to; one of these at most."""

    json_schema: Annotated[Path | None, "The answer is JSON that keeps to the JSON schema in this file."] = None
    regex: Annotated[str | None, "The whole answer matches this regular expression."] = None
    choice: Annotated[list[str] | None, "The answer is one of these texts; give one a text."] = None
    lark: Annotated[Path | None, "The answer keeps to the Lark grammar in this file, from its rule `start` on."] = None

    @property
    def constraint(self) -> Constraint | None:
        """Raises InputError for more than one, and for files that cannot be read."""
        given = [name for name, value in msgspec.structs.asdict(self).items() if value]
        if len(given) > 1:
            raise InputError(f"{' and '.join('--' + name.replace('_', '-') for name in given)} exclude each other")
        if self.json_schema is not None:
            return Constraint.of(Grammar.JSON_SCHEMA, _text(self.json_schema))
        if self.lark is not None:
            return Constraint.lark(_text(self.lark))
        if self.regex is not None:
            return Constraint.regex(self.regex)
        return Constraint.choice(self.choice) if self.choice else None


class AskOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What `cutline ask` is given."""

    image: Annotated[
        Path,
        typer.Argument(
            help="An image file: JPEG, PNG, WebP, GIF, BMP, AVIF or, with the extra heic, HEIC; with the extra camera "
            "a film: MP4, MOV, WebM, MKV, AVI."
        ),
    ]
    question: Annotated[str, typer.Argument(help="What to ask about it.")]
    mode: Annotated[
        str,
        "edge: the drafter alone; cloud: the worker alone; split: the target, cut; draft: drafted here, verified by "
        "the worker; auto: the gate decides, or with profiles the planner.",
    ] = "auto"
    agent: Annotated[str | None, "URL of a running agent to ask, instead of answering here."] = None
    opening: AgentOptions
    sampling: Annotated[Sampling, Without({"seed", "logit_bias", "constraint"})]
    seed: Annotated[int | None, "The same seed gives the same answer; without one, or with -1, it is drawn."] = None
    logit_bias: Annotated[list[str] | None, "TOKEN:NUMBER, added to the logits of a token; give one a token."] = None
    format: FormatOptions
    answering: AnswerOptions
    verbose: Annotated[bool, "In a pipe too, tell on stderr what the answer cost."] = False
    as_json: options.Json = False


@with_options
def ask(given: AskOptions) -> None:
    """Ask a question about an image, or about some frames of a film.

    On a terminal the answer is shown as it comes; in a pipe it stands alone, and what it cost is told with --verbose.

    Without --worker, modes edge and auto answer on this device. With profiles auto plans cut, format and drafting.
    Tokens are coloured by where they came from: yellow from this device, green drafted here and confirmed, blue from
    the worker.
    """
    import asyncio
    import sys

    from cutline.cli.setting import agent_opener, open_keys

    asked, opening = _asked(given), given.opening
    terminal = sys.stdout.isatty()
    shown = terminal and not given.as_json
    if given.agent is None:
        opener = agent_opener(opening, cuts=asked.cut != "image" or asked.mode is Mode.SPLIT)
        here = _shown_here if shown else _answer_here
        answer = asyncio.run(here(asked, opener, film=_is_film(given.image)))
    else:
        from cutline.edge.api.client import ask_agent, stream_agent

        if _is_film(given.image):
            raise InputError("--agent is asked about images here; its API takes films, as video_url")
        keys = open_keys(opening.keys)
        if msgspec.structs.replace(opening, keys=WorkerKeys(), worker=opening.worker or None) != AgentOptions():
            raise InputError(
                "--agent asks a running agent, which has its own --bundle, --worker, --directory, --target, --threads, "
                "--provider, --notice, --upstream and what goes with it, --offline and profiles"
            )
        url = given.agent
        answer = asyncio.run(_shown(stream_agent(url, asked, keys)) if shown else ask_agent(url, asked, keys))
    if given.as_json:
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        return
    if not terminal:
        print(answer.text)
    _tell(answer, verbose=given.verbose or terminal)


def _text(file: Path) -> str:
    """Raises InputError where a file cannot be read, is too large to be a constraint, or is no text."""
    try:
        return read_regular(file, limit=MAX_BYTES).decode()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{file} is no text in UTF-8") from None


def _asked(given: AskOptions) -> Request:
    """The request. Raises InputError, ImageError."""
    from cutline.models.images import read_image_file

    picture = read_image_file(given.image)
    seed, biases = chosen_seed(given.seed, given.sampling.temperature), tuple(map(_bias, given.logit_bias or ()))
    constraint = given.format.constraint
    sampling = msgspec.structs.replace(given.sampling, seed=seed, logit_bias=biases, constraint=constraint)
    return Request.about(
        picture, given.question, mode=given.mode, sampling=sampling, **msgspec.structs.asdict(given.answering)
    )


def _bias(text: str) -> tuple[int, float]:
    from cutline.errors import InputError

    token, _, number = text.partition(":")
    try:
        return int(token), float(number)
    except ValueError:
        raise InputError(f"--logit-bias {text} is not TOKEN:NUMBER, such as 42:-100") from None


def _is_film(file: Path) -> bool:
    return file.suffix.lower() in FILMS


async def _filmed(question: Request, agent: Agent) -> Request:
    """The question about a film in place of its image. Raises ImageError."""
    from cutline.core.conversation import Message, TextPart
    from cutline.core.request import MAX_IMAGES
    from cutline.edge.video.reader import part_of, read_video

    video = await read_video(question.images[0], agent.manifest.family, most=MAX_IMAGES)
    message = Message("user", (part_of(video), TextPart(question.text)))
    return msgspec.structs.replace(question, messages=(message,), images=video.frames)


async def _answer_here(question: Request, open_agent: Callable[[], Agent], *, film: bool) -> Answer:
    async with open_agent() as agent:
        return await agent.answer(await _filmed(question, agent) if film else question)


async def _shown_here(question: Request, open_agent: Callable[[], Agent], *, film: bool) -> Answer:
    async with open_agent() as agent:
        return await _shown(agent.stream(await _filmed(question, agent) if film else question))


async def _shown(events: AsyncGenerator[Event]) -> Answer:
    from rich.console import Console

    from cutline.cli.terminal.answer_view import follow

    return await follow(events, Console(highlight=False))


def _tell(answer: Answer, *, verbose: bool) -> None:
    """What is no answer goes to stderr: what went wrong always, figures if they are wanted."""
    from rich.console import Console

    from cutline.cli.terminal.answer_view import figures, warnings

    console = Console(stderr=True, highlight=False)
    for line in (*warnings(answer), *(figures(answer) if verbose else ())):
        console.print(line, style="dim", markup=False, soft_wrap=True)  # what others wrote is text, never markup
