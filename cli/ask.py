"""`cutline ask`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cutline.cli import options

if TYPE_CHECKING:
    from cutline.edge.answer import Answer, Question

EPILOG = "Example: cutline ask card.png 'Read the digits.' --mode auto --worker 127.0.0.1:50051"


def ask(
    image: Annotated[Path, typer.Argument(help="An image file: JPEG, PNG or WebP.")],
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    mode: Annotated[
        str,
        typer.Option(
            help="edge: the drafter alone; cloud: the worker alone; split: the target, cut; "
            "draft: drafted here, verified by the worker; auto: the gate decides."
        ),
    ] = "auto",
    worker: options.Worker = None,
    agent: Annotated[
        str | None, typer.Option(help="URL of a running agent to ask, instead of answering here.", show_default=False)
    ] = None,
    bundle: options.Bundle = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Keep this many best tokens; 0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the best tokens of this share of probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answer.")] = 0,
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
    target: options.Target = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the worker.")] = 60.0,
    threads: options.Threads = None,
    provider: options.Provider = None,
    as_json: options.Json = False,
) -> None:
    """Ask a question about an image.

    Without --worker, mode edge answers on this device, and auto where the gate lets the answer stand. Tokens are
    coloured by where they came from: yellow from this device, green drafted here and confirmed, blue from the worker.
    """
    import asyncio
    import sys

    import msgspec

    from cutline.edge.answer import Mode, Question
    from cutline.errors import ImageError, InputError
    from cutline.models.images import MAX_BYTES
    from cutline.models.sampling import Sampling
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
    asked = Question(
        image=picture,
        text=question,
        mode=Mode(mode),
        sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed),
        max_tokens=max_tokens,
        effort=effort,
        cut=cut,
        wire=Wire(wire),
        keep_image_tokens=keep_image_tokens,
        timeout=timeout,
    )
    if agent is not None and (bundle or worker or target or threads or provider):
        raise InputError(
            "--agent asks a running agent, which has its own --bundle, --worker, --target, --threads and --provider"
        )
    if agent is None:
        answer = asyncio.run(_answer_here(asked, bundle, target, worker, threads, provider))
    else:
        from cutline.edge.remote import ask_agent

        answer = ask_agent(agent, asked)
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    else:
        _show(answer)


async def _answer_here(
    question: Question,
    bundle: Path | None,
    target: Path | None,
    worker: str | None,
    threads: int | None,
    provider: str | None,
) -> Answer:
    from cutline.cli.setting import open_drafter, open_target_for, thread_count
    from cutline.edge.agent import Agent
    from cutline.edge.runtime import CPU

    needed = None if question.cut == "image" else open_target_for(target, bundle)
    async with Agent(
        open_drafter(bundle), worker=worker, threads=thread_count(threads), target=needed, provider=provider or CPU
    ) as agent:
        return await agent.answer(question)


def _show(answer: Answer) -> None:
    from rich.console import Console

    from cutline.cli.provenance import coloured

    console = Console(highlight=False)
    console.print(coloured(answer.tokens))
    where = f"worker {answer.worker}" if answer.worker else "this device alone"
    if answer.wire is not None:
        where += f" · cut at {answer.cut}, {answer.wire}"
    cost = f"{answer.bytes_up} B up, {answer.bytes_down} B down, {answer.accepted} of {answer.drafted} drafted accepted"
    console.print(f"[dim]{answer.mode} · {where} · {answer.latency_ms:.0f} ms · {cost}[/dim]")
