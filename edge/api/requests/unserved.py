"""What clients of chat completions send that changes no answer here, and the fields of OpenAI's that are not served.

docs/reference/api.md names each.
"""

from __future__ import annotations

from typing import Any

from cutline.edge.api.requests.fields import Rules

_OF_MESSAGES = Rules(
    ignored={"name": (str,)},
    neutral={  # a client that sends an answer back sends these with it
        "annotations": ([],),
        "audio": (),
        "function_call": (),
        "refusal": (),
        "tool_calls": ([],),
    },
)


class _ChatRules(Rules):
    """Of tools that may not be called, any number may be offered."""

    def wanted(self, raw: Any) -> Any:
        if isinstance(raw, dict):
            offers = {"tools": "tool_choice", "functions": "function_call"}
            unused = {one for one, choice in offers.items() if raw.get(choice) == "none" and type(raw.get(one)) is list}
            raw = {name: value for name, value in raw.items() if name not in unused}
        return super().wanted(raw)


RULES = _ChatRules(
    ignored={
        "keep_alive": (str, int, float),  # the models stay as long as the agent does
        "metadata": (dict,),
        "num_ctx": (int,),  # the context is the model's own
        "prompt_cache_key": (str,),
        "prompt_cache_retention": (str,),
        "safety_identifier": (str,),
        "store": (bool,),  # nothing is stored
    },
    neutral={
        "audio": (),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "modalities": (["text"],),
        "n": (1,),
        "parallel_tool_calls": (True, False),
        "prediction": (),
        "reasoning_effort": (),
        "response_format": ({"type": "text"},),
        "service_tier": ("auto", "default"),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "verbosity": (),
        "web_search_options": (),
    },
    inner={"messages": _OF_MESSAGES},
)
