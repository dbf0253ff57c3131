"""The page's own arithmetic, run in the browser, against what Python says of the same."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cutline.edge.generation.events import Corrected, Guessed, Settled
from cutline.edge.generation.result import Provenance, Token
from tests.page.conftest import Page

TEXT = st.text("ab ", min_size=1, max_size=3)
TOKEN = st.builds(Token, st.just(0), TEXT, st.sampled_from(Provenance))
STEP = st.one_of(
    st.builds(lambda tokens: ("settled", tokens, 0), st.lists(TOKEN, min_size=1, max_size=3)),
    st.builds(lambda tokens, back: ("corrected", tokens, back), st.lists(TOKEN, max_size=3), st.integers(0, 4)),
    st.builds(lambda text, back: ("guessed", text, back), st.text("ab ", max_size=8), st.integers(0, 3)),
)
REPLAY = """
const { after, BEGUN, guessed, textOf, shares, line } = await import("/answer.js");
let state = BEGUN;
const seen = [];
for (const event of JSON.parse(arguments[0])) {
  state = after(state, event);
  seen.push([textOf(state.tokens), guessed(state), shares(state.tokens), line(state.tokens)]);
}
return seen;
"""


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(steps=st.lists(STEP, max_size=8))
def test_events_leave_what_they_say(page: Page, steps: list[tuple[str, Any, int]]) -> None:
    tokens: list[Token] = []
    guess: tuple[int, str] | None = None
    events: list[dict[str, Any]] = []
    expected = []
    for kind, what, back in steps:
        position = max(0, len(tokens) - back)
        match kind:
            case "settled":
                events.append({"settled": Settled(len(tokens), tuple(what))})
                tokens = tokens + what
            case "corrected":
                events.append({"corrected": Corrected(position, tuple(what))})
                tokens, guess = tokens[:position] + what, None
            case _:
                events.append({"guessed": Guessed(position, what)})
                guess = (position, what)
        text = "".join(token.text for token in tokens)
        since = "".join(token.text for token in tokens[guess[0] :]) if guess else ""
        left = guess[1][len(since) :] if guess and guess[1][: len(since)] == since else ""
        counted = {str(source): sum(token.source is source for token in tokens) for source in Provenance}
        pieces: list[list[Any]] = []
        for token in tokens:
            if pieces and pieces[-1][0] == token.source:
                pieces[-1][1] += 1
            else:
                pieces.append([str(token.source), 1])
        expected.append([text, left, counted, pieces])
    assert page.run(REPLAY, msgspec.json.encode(events).decode()) == expected


READ: dict[str, str | int] = {
    "milliseconds(2.44)": "2.4 ms",
    "milliseconds(84.3)": "84 ms",
    "milliseconds(1234)": "1.23 s",
    "milliseconds(65000)": "65.0 s",
    "milliseconds(null)": "\u2013",
    "bytes(0)": "0 B",
    "bytes(8839)": "8.8 kB",
    "bytes(123456)": "123 kB",
    "bytes(2500000)": "2.5 MB",
    "energy({joules: 0.0042, estimated: false})": "4.2 mJ, measured",
    "energy({joules: 1.234, estimated: true})": "1.23 J, estimated",
    "rate(12.34)": "12 Mbit/s",
    "count(1, 'word')": "1 word",
    "count(12, 'word')": "12 words",
    "words(' one  two ')": 2,
}


def test_numbers_read_well(page: Page) -> None:
    calls = ", ".join(f"f.{call}" for call in READ)
    assert page.run(f'const f = await import("/figures.js"); return [{calls}];') == list(READ.values())


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_stream_reads_however_it_is_cut(page: Page, size: int) -> None:
    script = """
        const { lines } = await import("/agent.js");
        const bytes = new TextEncoder().encode(arguments[0]);
        const body = new ReadableStream({ start(c) {
          for (let at = 0; at < bytes.length; at += arguments_size) c.enqueue(bytes.slice(at, at + arguments_size));
          c.close();
        } });
        const found = [];
        for await (const data of lines(body)) found.push(data);
        return found;
    """.replace("arguments_size", str(size))
    stream = 'data: {"a": "é…"}\n\n: waiting\n\ndata: two\r\n\r\ndata: [DONE]\n\n'
    assert page.run(script, stream) == ['{"a": "é…"}', "two", "[DONE]"]
