"""What an install must do, whatever versions it has: `make test-lowest` runs it with the oldest that are allowed.

It needs no more than pytest and openai beside the install; what it has nothing for is skipped.
"""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

import cutline
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.edge.agent import Agent
from cutline.edge.api.server import ServerOptions, serve
from cutline.models.bundle import Bundle

CARD = DRAFTER.parent.parent / "examples" / "card1.png"
ANSWER = "The card shows a green 4 at top left, a green 3 at top right and a green 7 at bottom left."

IMPORT = """
import importlib, sys
from pathlib import Path
house = Path(sys.argv[1])
for room in sys.argv[2:]:
    for file in sorted((house / room).rglob("*.py")):
        name = ".".join(("cutline", *file.relative_to(house).with_suffix("").parts)).removesuffix(".__init__")
        if not name.startswith(("cutline.cli.access", "cutline.models.export")) and not name.endswith("__main__"):
            importlib.import_module(name)
sys.exit("torch" in sys.modules)
"""
PROGRAM = "from cutline.cli.entry import main; main()"


def started(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_every_module_of_a_device_can_be_imported_without_torch() -> None:
    ran = started(
        IMPORT, str(DRAFTER.parents[2]), "cli", "core", "devices", "edge", "errors", "models", "partitioner", "protos"
    )
    assert ran.returncode == 0, ran.stderr


def test_a_device_answers_a_question_alone() -> None:
    ran = started(PROGRAM, "ask", str(CARD), "Describe the card.", "--mode", "edge")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == ANSWER


def test_what_is_made_of_a_request_is_checked_like_one() -> None:
    with pytest.raises(cutline.InputError, match="temperature"):
        msgspec.structs.replace(cutline.Sampling(), temperature=-1.0)


def test_settings_are_read_and_shown(tmp_path: Path) -> None:
    file = tmp_path / "edge.toml"
    file.write_text('worker = ["a:1", "b:2"]\nfresh = true\n')
    ran = started(PROGRAM, "config", "show", "edge", "--json", "--config", str(file))
    assert ran.returncode == 0, ran.stderr
    assert '"worker": {"value": ["a:1", "b:2"]' in ran.stdout


def test_openais_client_is_answered() -> None:
    async def run() -> None:
        listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        stop, given = asyncio.Event(), ServerOptions(listen="127.0.0.1:0")
        async with Agent(Bundle.open(DRAFTER), worker=(), threads=1) as agent:
            server = asyncio.create_task(serve(agent, given, announce=listening.set_result, stop=stop))
            either: list[asyncio.Future[Any]] = [server, listening]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            url = "data:image/png;base64," + base64.b64encode(CARD.read_bytes()).decode()
            content = [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": "Describe the card."},
            ]
            async with openai.AsyncOpenAI(base_url=f"http://{listening.result()}/v1", api_key="none") as client:
                asked = {"model": "cutline", "messages": [{"role": "user", "content": content}], "max_tokens": 64}
                whole = await client.chat.completions.create(**asked)
                assert whole.choices[0].message.content == ANSWER
                stream = await client.chat.completions.create(**asked, stream=True)
                pieces = [piece.choices[0].delta.content or "" async for piece in stream if piece.choices]
                assert "".join(pieces) == ANSWER
            stop.set()
            await server

    asyncio.run(run())


def test_a_worker_of_this_process_answers_over_the_wire() -> None:
    pytest.importorskip("torch")
    drafter, target = Bundle.open(DRAFTER), Bundle.open(TARGET)
    with (
        cutline.Worker(target) as worker,
        cutline.BlockingAgent(cutline.Agent(drafter, worker=worker.address, target=target)) as agent,
    ):
        for mode, cut in (
            (cutline.Mode.CLOUD, "image"),
            (cutline.Mode.DRAFT, "image"),
            (cutline.Mode.SPLIT, "decoder.0"),
        ):
            request = cutline.Request.about(CARD.read_bytes(), "Describe the card.", mode=mode, cut=cut)
            answer = agent.answer(request)
            assert (answer.text, answer.exact) == (ANSWER, True)


def test_keys_are_made(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    ran = started(PROGRAM, "keys", "init", str(tmp_path / "keys"), "--device", "camera", "--json")
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "keys" / "camera.crt").is_file()
