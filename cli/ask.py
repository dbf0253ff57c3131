"""`cutline ask`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cutline.cli import options
from cutline.cli.fields import with_fields
from cutline.core.sampling import GREEDY, Sampling, chosen_seed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from cutline.core.request import Request
    from cutline.edge.agent import Agent
    from cutline.edge.generation.events import Event
    from cutline.edge.generation.result import Answer

EPILOG = "Example: cutline ask card.png 'Read the digits.' --mode auto --worker 127.0.0.1:50051"


@with_fields(Sampling, "sampling", but=frozenset({"seed", "logit_bias"}))
def ask(
    image: Annotated[
        Path, typer.Argument(help="An image file: JPEG, PNG, WebP, GIF, BMP, AVIF or, with the extra heic, HEIC.")
    ],
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    mode: Annotated[
        str,
        typer.Option(
            help="edge: the drafter alone; cloud: the worker alone; split: the target, cut; "
            "draft: drafted here, verified by the worker; auto: the gate decides, or with profiles the planner."
        ),
    ] = "auto",
    worker: options.Workers = None,
    directory: options.Directory = None,
    agent: Annotated[
        str | None, typer.Option(help="URL of a running agent to ask, instead of answering here.", show_default=False)
    ] = None,
    bundle: options.Bundle = None,
    sampling: Sampling = GREEDY,
    seed: Annotated[
        int | None,
        typer.Option(
            help="The same seed gives the same answer; without one, or with -1, it is drawn.", show_default=False
        ),
    ] = None,
    logit_bias: Annotated[
        list[str] | None,
        typer.Option(help="TOKEN:NUMBER, added to the logits of a token; give one a token.", show_default=False),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of the answer at most.")] = 64,
    effort: Annotated[float, typer.Option(help="0: the worker only verifies; 1: it decodes whenever it can.")] = 1.0,
    cut: Annotated[
        str,
        typer.Option(
            help="First layer of the target that the worker runs: image, vision.0, ..., decoder.0, ..., head."
        ),
    ] = "image",
    wire: Annotated[
        str, typer.Option(help="Format of what crosses a later cut: fp32, fp16, bf16, int8, int4.")
    ] = "fp32",
    keep_image_tokens: Annotated[
        float,
        typer.Option(help="Share of the image tokens that enter the decoder, from decoder.0 on; the rest is merged."),
    ] = 1.0,
    noise: Annotated[
        float,
        typer.Option(
            help="Gaussian noise on what crosses a later cut than image, as a share of each row's root mean square."
        ),
    ] = 0.0,
    target: options.Target = None,
    edge_profile: options.EdgeProfile = None,
    cloud_profile: options.CloudProfile = None,
    link: options.Link = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="With mode auto, plan only what gives the target's own tokens.")
    ] = False,
    image_must_stay: Annotated[
        bool,
        typer.Option("--image-must-stay", help="Likewise: neither the picture nor its bare patches leave the device."),
    ] = False,
    max_latency_ms: Annotated[
        float | None,
        typer.Option(help="Likewise: what may be predicted, also if the gate passes it on.", show_default=False),
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            help="Likewise: share of answers that must be the target's own, where that was measured; without it, 0.9.",
            show_default=False,
        ),
    ] = None,
    max_leak: Annotated[
        float | None,
        typer.Option(
            help="Likewise: share of the picture that an attacker may recover, as measured; what nobody measured "
            "leaks all.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the worker.")] = 60.0,
    correct: Annotated[
        float, typer.Option(help="Seconds to look for a worker that verifies what this device had to finish alone.")
    ] = 0.0,
    threads: options.Threads = None,
    provider: options.Provider = None,
    ca: options.Ca = None,
    cert: options.Cert = None,
    key: options.Key = None,
    token_file: options.TokenFile = None,
    notice: options.Notice = 2.0,
    upstream: options.Upstream = None,
    upstream_model: options.UpstreamModel = "default",
    upstream_key_file: options.UpstreamKeyFile = None,
    offline: options.Offline = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="In a pipe too, tell on stderr what the answer cost.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Ask a question about an image.

    On a terminal the answer is shown as it comes; in a pipe it stands alone, and what it cost is told with --verbose.

    Without --worker, modes edge and auto answer on this device. With profiles auto plans cut, format and drafting.
    Tokens are coloured by where they came from: yellow from this device, green drafted here and confirmed, blue from
    the worker.
    """
    import asyncio
    import sys

    import msgspec

    from cutline.cli.setting import AgentOptions, agent_opener, open_keys
    from cutline.core.request import Request
    from cutline.edge.offload.heartbeat import NOTICE
    from cutline.errors import ImageError, InputError
    from cutline.models.images import MAX_BYTES

    try:
        with image.open("rb") as file:
            picture = file.read(MAX_BYTES + 1)  # the one byte more is enough to refuse it
    except OSError as error:
        raise ImageError(f"cannot read {image}: {error.strerror}") from None
    asked = Request.about(
        picture,
        question,
        mode=mode,
        sampling=msgspec.structs.replace(
            sampling, seed=chosen_seed(seed, sampling.temperature), logit_bias=tuple(map(_bias, logit_bias or ()))
        ),
        max_tokens=max_tokens,
        effort=effort,
        cut=cut,
        wire=wire,
        keep_image_tokens=keep_image_tokens,
        noise=noise,
        timeout=timeout,
        correct_seconds=correct,
        exact=exact,
        image_must_stay=image_must_stay,
        max_latency_ms=max_latency_ms,
        min_agreement=min_agreement,
        max_leak=max_leak,
    )
    profiles, keys = (edge_profile, cloud_profile, link), open_keys(ca, cert, key, token_file)
    theirs = bundle, worker, directory, target, threads, provider, upstream, upstream_key_file, offline, *profiles
    if agent is not None and (any(theirs) or upstream_model != "default" or notice != NOTICE):
        raise InputError(
            "--agent asks a running agent, which has its own --bundle, --worker, --directory, --target, --threads, "
            "--provider, --notice, --upstream and what goes with it, --offline and profiles"
        )
    terminal = sys.stdout.isatty()
    shown = terminal and not as_json
    if agent is None:
        given = AgentOptions(
            bundle=bundle,
            target=target,
            workers=worker or (),
            directory=directory,
            profiles=profiles,
            threads=threads,
            provider=provider,
            keys=keys,
            notice=notice,
            offline=offline,
            upstream=upstream,
            upstream_model=upstream_model,
            upstream_key_file=upstream_key_file,
        )
        opener = agent_opener(given, cuts=cut != "image" or mode == "split")
        answer = asyncio.run(_shown_here(asked, opener) if shown else _answer_here(asked, opener))
    else:
        from cutline.edge.api.client import ask_agent, stream_agent

        answer = asyncio.run(_shown(stream_agent(agent, asked, keys)) if shown else ask_agent(agent, asked, keys))
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        return
    if not terminal:
        print(answer.text)
    _tell(answer, verbose=verbose or terminal)


def _bias(text: str) -> tuple[int, float]:
    from cutline.errors import InputError

    token, _, number = text.partition(":")
    try:
        return int(token), float(number)
    except ValueError:
        raise InputError(f"--logit-bias {text} is not TOKEN:NUMBER, such as 42:-100") from None


async def _answer_here(question: Request, open_agent: Callable[[], Agent]) -> Answer:
    async with open_agent() as agent:
        return await agent.answer(question)


async def _shown_here(question: Request, open_agent: Callable[[], Agent]) -> Answer:
    async with open_agent() as agent:
        return await _shown(agent.stream(question))


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
