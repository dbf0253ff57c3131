"""An answer on a terminal: what is settled, what is believed behind it, and that it is there before it is whole."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import re
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

from rich.console import Console

from cutline.cli.terminal.answer_view import AnswerView, follow
from cutline.demo.publish import EXAMPLES
from cutline.edge.generation.events import Corrected, Event, Guessed, Settled
from cutline.edge.generation.result import Provenance, Token
from cutline.testing.agent import spoken

ANSWER = spoken("The", " card", " shows", " a", " 7")
WORDS = ANSWER.tokens


def text(view: AnswerView) -> str:
    return str(view.__rich__())


def test_what_is_believed_stands_behind_what_is_settled() -> None:
    view = AnswerView()
    view.see(Guessed(0, "The card shows"))
    assert text(view) == "The card shows"
    view.see(Settled(0, tuple(WORDS[:2])))
    assert text(view) == "The card"
    view.see(Guessed(1, " card shows two"))  # what it believed of a token that was settled meanwhile
    assert text(view) == "The card shows two"
    view.see(Guessed(1, " picture is"))  # it had not heard of " card" yet
    assert text(view) == "The card"
    view.see(Settled(2, tuple(WORDS[2:])))
    view.see(Corrected(3, (Token(9, " two 7s", Provenance.CLOUD),)))
    assert text(view) == "The card shows two 7s"


def test_an_answer_is_shown_before_it_is_whole() -> None:
    file = io.StringIO()
    shown: list[str] = []

    async def events() -> AsyncGenerator[Event]:
        for index, word in enumerate(WORDS):
            yield Settled(index, (word,))
            shown.append(file.getvalue())
        yield ANSWER

    console = Console(file=file, force_terminal=True, color_system=None, width=60)
    assert asyncio.run(follow(events(), console)) == ANSWER
    assert "The card" in shown[1]
    assert " shows" not in shown[1]
    assert file.getvalue().rstrip().endswith("The card shows a 7")


def test_ask_on_a_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "cutline.cli",
        "ask",
        str(EXAMPLES / "card1.png"),
        "Describe the card.",
        "--mode",
        "edge",
    ]
    plain = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    ran = subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    seen = b""
    try:
        while piece := os.read(ours, 4096):
            seen += piece
    except OSError:  # the other end is closed
        pass
    _, told = ran.communicate()
    screen = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode())
    assert plain in screen.replace("\r\n", "\n")
    assert "this device alone" in told
