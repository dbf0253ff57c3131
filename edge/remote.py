"""Asking an agent that runs elsewhere, over HTTP."""

from __future__ import annotations

import httpx
import msgspec

from cutline.edge.answer import Answer
from cutline.edge.chat import STATUS, Answered, Completion, Failed
from cutline.edge.question import Question
from cutline.errors import CutlineError, InputError, WorkerUnavailable


def ask_agent(url: str, question: Question) -> Answer:
    """The answer of the agent at `url`. Raises what the agent raised, or WorkerUnavailable if none is there."""
    # An agent is on this machine or near it: a proxy meant for browsers must not come between.
    try:
        client = httpx.Client(base_url=url, timeout=question.timeout + 5, trust_env=False)
    except httpx.InvalidURL:
        raise InputError(f"{url} is no URL of an agent; give one such as http://127.0.0.1:8080") from None
    with client:
        return ask_over(client, question)


def ask_over(client: httpx.Client, question: Question) -> Answer:
    """`ask_agent` over a connection that is kept."""
    body = msgspec.json.encode(Completion.asking(question))
    try:
        response = client.post("/v1/chat/completions", content=body)
    except httpx.TimeoutException:
        raise WorkerUnavailable(f"the agent at {client.base_url} did not answer in time") from None
    except (httpx.UnsupportedProtocol, httpx.InvalidURL, ValueError):
        raise InputError(f"{client.base_url} is no URL of an agent; give one such as http://127.0.0.1:8080") from None
    except httpx.TransportError:
        raise WorkerUnavailable(f"no agent answers at {client.base_url}; is it running?") from None
    try:
        if response.status_code == 200:
            return msgspec.json.decode(response.content, type=Answered).cutline
        fault = msgspec.json.decode(response.content, type=Failed).error
    except msgspec.MsgspecError:
        raise InputError(f"what answers at {client.base_url} is not a Cutline agent") from None
    kind = next((kind for kind in STATUS if kind.__name__ == fault.type), CutlineError)
    raise kind(fault.message)
