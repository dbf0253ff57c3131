"""How an answer looks in a terminal while it comes, and what is told of it afterwards."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator

from rich.console import Console
from rich.live import Live
from rich.text import Text

from cutline.cli.terminal.provenance import coloured
from cutline.edge.generation.events import Corrected, Event, Guessed, Settled
from cutline.edge.generation.gate import TARGET, whose
from cutline.edge.generation.result import Answer, Lost, Token

GUESSED = "dim italic"


class AnswerView:
    """The answer so far: what is settled in the colours of its provenance, and behind it what the drafter believes."""

    def __init__(self) -> None:
        self._tokens: list[Token] = []
        self._guess = ""

    def see(self, event: Event) -> None:
        """Take in what happened."""
        match event:
            case Settled() | Corrected():
                self._tokens[event.position :] = event.tokens
                self._guess = ""
            case Guessed() if event.position <= len(self._tokens):
                # What it believed of tokens that were settled meanwhile is no longer of interest.
                known = "".join(token.text for token in self._tokens[event.position :])
                self._guess = event.text.removeprefix(known) if event.text.startswith(known) else ""
            case Lost() if event.next is None:
                self._guess = ""

    def __rich__(self) -> Text:
        return coloured(self._tokens).append(self._guess, GUESSED)


async def follow(events: AsyncGenerator[Event], console: Console) -> Answer:
    """Show an answer on a terminal as it comes, and return it."""
    view, answer = AnswerView(), None
    with Live(view, console=console, transient=True, auto_refresh=False, vertical_overflow="visible") as live:
        async for event in events:
            view.see(event)
            live.refresh()
            if isinstance(event, Answer):
                answer = event
    if answer is None:
        raise RuntimeError("an answer's events end with the answer")
    console.print(coloured(answer.tokens), soft_wrap=True)
    return answer


def warnings(answer: Answer) -> Iterator[str]:
    """What did not go as it was meant to: lost workers, and what nobody confirmed."""
    for lost in answer.lost:
        then = f"{lost.next} went on" if lost.next else "the drafter went on"
        what = f"lost {lost.worker} after {lost.position} tokens" if lost.position else f"passed over {lost.worker}"
        yield f"{what}, {then}: {lost.why}"
    if answer.tail is not None:
        yield f"this device alone from token {answer.alone_from} on: {answer.tail}"


def figures(answer: Answer) -> Iterator[str]:
    """What the answer cost, and what is promised of it."""
    gate = answer.gate
    if gate is not None and gate.promised is not None:
        other = whose(gate.against or TARGET)
        yield f"kept: at most {gate.promised:.1%} of such answers differ from {other}, by {gate.agree} ({gate.group})"
    elif gate is not None and not answer.exact:
        yield f"nothing is promised of this answer ({gate.decision}; {gate.group})"
    if answer.seed is not None:
        yield f"seed {answer.seed}"
    if (plan := answer.plan) is not None:
        cut = plan.mode + (f" at {plan.cut}" if plan.cut else "") + (f" in {plan.wire}" if plan.wire else "")
        yield f"planned {cut}: {plan.predicted_ms:.0f} ms predicted, {plan.measured_ms:.0f} measured"
    where = f"worker {answer.worker}" if answer.worker else "this device alone"
    if answer.wire is not None:
        where += f" · cut at {answer.cut}, {answer.wire}"
    cost = f"{answer.bytes_up} B up, {answer.bytes_down} B down, {answer.accepted} of {answer.drafted} drafted accepted"
    yield f"{answer.mode} · {where} · {answer.latency_ms:.0f} ms · {cost}"
