"""A model that has to call a tool calls one, in every mode the same; and one that knows none says so."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cutline.cloud.worker import Worker
from cutline.core.conversation import Message, TextPart
from cutline.core.request import Mode, Request
from cutline.core.tools import Tool, Toolbox, ToolCall
from cutline.demo.bundles import DRAFTER
from cutline.edge.agent import Agent
from cutline.edge.api.streams import whole_of
from cutline.edge.generation.result import Answer
from cutline.errors import InputError
from cutline.models.bundle import Bundle

PARAMETERS: dict[str, dict[str, Any]] = {
    "weather": {
        "type": "object",
        "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "days"],
        "additionalProperties": False,
        "$defs": {"city": {"enum": ["Rome", "Oslo"]}},
    },
    "time": {"type": "object", "properties": {}, "additionalProperties": False},
}
TOOLS = tuple(Tool.of(name, f"The {name}.", schema) for name, schema in PARAMETERS.items())
ASKED = (Message("user", (TextPart("Wet?"),)),)
GONE_ON = (
    *ASKED,
    Message("assistant", (), (ToolCall(name="weather", arguments='{"city": "Rome", "days": 1}'),)),
    Message("tool", (TextPart("wet"),)),
)
BOXES = {
    "required": Toolbox(tools=TOOLS, choice="required", parallel=False),
    "several": Toolbox(tools=TOOLS, choice="required"),
    "named": Toolbox(tools=TOOLS, named="weather"),
}


def test_a_tool_that_has_to_be_called_is_called_in_every_mode_the_same(tools_folder: Path) -> None:
    target, drafter = Bundle.open(tools_folder / "target"), Bundle.open(tools_folder / "drafter")

    def asked(box: Toolbox, mode: Mode, messages: tuple[Message, ...] = ASKED) -> Request:
        return Request(messages=messages, tools=box, mode=mode, max_tokens=120)

    async def run() -> dict[str, list[Answer]]:
        async with Agent(drafter, worker=worker.address, threads=1) as agent:
            return {
                name: [await agent.answer(asked(box, mode)) for mode in (Mode.CLOUD, Mode.DRAFT, Mode.AUTO, Mode.EDGE)]
                for name, box in BOXES.items()
            } | {"gone on": [await agent.answer(asked(BOXES["named"], Mode.CLOUD, GONE_ON))]}

    with Worker(target) as worker:
        found = asyncio.run(run())
    for name, answers in found.items():
        exact = [one for one in answers if one.mode is not Mode.EDGE]
        assert len({tuple(token.id for token in one.tokens) for one in exact}) == 1, name
        assert all(one.exact for one in exact)
        box = BOXES.get(name, BOXES["named"])
        for answer in answers:
            words, calls = whole_of(drafter.manifest, asked(box, Mode.CLOUD), answer)
            assert words == ""
            assert answer.gate is not None
            assert "tools" in answer.gate.group
            if not answer.complete:
                assert name == "several", "which a model without sense goes on with"
                calls = calls[:-1]
            assert calls
            for call in calls:
                jsonschema.validate(json.loads(call.arguments), PARAMETERS[call.name])
            if name != "several":
                assert len(calls) == 1
            if name == "named":
                assert calls[0].name == "weather"


def test_a_model_that_knows_no_tools_refuses_them_by_name() -> None:
    async def run(**options: Any) -> None:
        async with Agent(Bundle.open(DRAFTER), threads=1) as agent:
            await agent.answer(Request(**{"messages": ASKED, "mode": Mode.EDGE} | options))

    name = Bundle.open(DRAFTER).manifest.name
    for options in ({"tools": Toolbox(tools=TOOLS)}, {"tools": BOXES["named"]}, {"messages": GONE_ON}):
        with pytest.raises(InputError, match=f"{name} calls no tools"):
            asyncio.run(run(**options))
