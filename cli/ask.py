"""`cutline ask`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cutline.cli import options

if TYPE_CHECKING:
    from collections.abc import Callable

    from cutline.edge.agent import Agent
    from cutline.edge.answer import Answer
    from cutline.edge.question import Question

EPILOG = "Example: cutline ask card.png 'Read the digits.' --mode auto --worker 127.0.0.1:50051"


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
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Keep this many best tokens; 0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the best tokens of this share of probability.")] = 1.0,
    seed: Annotated[
        int | None,
        typer.Option(
            help="The same seed gives the same answer; without one, or with -1, it is drawn.", show_default=False
        ),
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
    as_json: options.Json = False,
) -> None:
    """Ask a question about an image.

    Without --worker, modes edge and auto answer on this device. With profiles auto plans cut, format and drafting.
    Tokens are coloured by where they came from: yellow from this device, green drafted here and confirmed, blue from
    the worker.
    """
    import asyncio
    import sys

    import msgspec

    from cutline.cli.setting import AgentOptions, agent_opener, open_keys
    from cutline.edge.heartbeat import NOTICE
    from cutline.edge.question import Mode, Question
    from cutline.errors import ImageError, InputError
    from cutline.models.images import MAX_BYTES
    from cutline.models.sampling import Sampling, chosen_seed
    from cutline.models.wire import Wire

    if mode not in list(Mode):
        raise InputError(f"there is no mode {mode!r}; choose {', '.join(Mode)}")
    if wire not in list(Wire):
        raise InputError(f"there is no wire format {wire!r}; choose {', '.join(Wire)}")
    try:
        with image.open("rb") as file:
            picture = file.read(MAX_BYTES + 1)  # the one byte more is enough to refuse it
    except OSError as error:
        raise ImageError(f"cannot read {image}: {error.strerror}") from None
    asked = Question.about(
        picture,
        question,
        mode=Mode(mode),
        sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=chosen_seed(seed, temperature)),
        max_tokens=max_tokens,
        effort=effort,
        cut=cut,
        wire=Wire(wire),
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
        answer = asyncio.run(_answer_here(asked, agent_opener(given, cuts=cut != "image")))
    else:
        from cutline.edge.remote import ask_agent

        answer = asyncio.run(ask_agent(agent, asked, keys))
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    else:
        _show(answer)


async def _answer_here(question: Question, open_agent: Callable[[], Agent]) -> Answer:
    async with open_agent() as agent:
        return await agent.answer(question)


def _show(answer: Answer) -> None:
    from rich.console import Console

    from cutline.cli.provenance import coloured

    console = Console(highlight=False)
    console.print(coloured(answer.tokens))

    def tell(line: str) -> None:  # what others wrote is text, never markup
        console.print(line, style="dim", markup=False)

    where = f"worker {answer.worker}" if answer.worker else "this device alone"
    if answer.wire is not None:
        where += f" · cut at {answer.cut}, {answer.wire}"
    cost = f"{answer.bytes_up} B up, {answer.bytes_down} B down, {answer.accepted} of {answer.drafted} drafted accepted"
    if (plan := answer.plan) is not None:
        where_cut = plan.mode + (f" at {plan.cut}" if plan.cut else "") + (f" in {plan.wire}" if plan.wire else "")
        tell(f"planned {where_cut}: {plan.predicted_ms:.0f} ms predicted, {plan.measured_ms:.0f} measured")
    if answer.gate is not None and answer.gate.promised is not None:
        tell(f"kept: at most {answer.gate.promised:.1%} of such answers differ from the target's ({answer.gate.group})")
    elif answer.gate is not None and not answer.exact:
        tell(f"nothing is promised of this answer ({answer.gate.decision}; {answer.gate.group})")
    for lost in answer.lost:
        then = f"{lost.next} went on" if lost.next else "the drafter went on"
        what = f"lost {lost.worker} after {lost.position} tokens" if lost.position else f"passed over {lost.worker}"
        tell(f"{what}, {then}: {lost.why}")
    if answer.seed is not None:
        tell(f"seed {answer.seed}")
    if answer.tail is not None:
        tell(f"this device alone from token {answer.alone_from} on: {answer.tail}")
    tell(f"{answer.mode} · {where} · {answer.latency_ms:.0f} ms · {cost}")
