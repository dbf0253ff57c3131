"""What clients send that changes no answer here, and the fields of OpenAI's that are not served.

A field of the second kind is refused, unless it has a value that asks for nothing; null never asks for anything.
"""

from __future__ import annotations

from typing import Any

# What is taken whatever it says, by its type. docs/reference/api.md names each.
_IGNORED: dict[str, tuple[type, ...]] = {
    "keep_alive": (str, int, float),  # the models stay as long as the agent does
    "metadata": (dict,),
    "num_ctx": (int,),  # the context is the model's own
    "prompt_cache_key": (str,),
    "prompt_cache_retention": (str,),
    "safety_identifier": (str,),
    "store": (bool,),  # nothing is stored
}
_IGNORED_OF_MESSAGES: dict[str, tuple[type, ...]] = {"name": (str,)}

NOT_SERVED: dict[str, tuple[object, ...]] = {
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
}
# Likewise in a message: a client that sends an answer back sends these with it.
_NOT_SAID: dict[str, tuple[object, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "refusal": (),
    "tool_calls": ([],),
}
_UNUSED = {"tools": "tool_choice", "functions": "function_call"}  # where the second forbids what the first offers


def asking(raw: Any) -> Any:
    """The request without what changes no answer."""
    if not isinstance(raw, dict):
        return raw
    unused = {name for name, choice in _UNUSED.items() if raw.get(choice) == "none" and isinstance(raw.get(name), list)}
    wanted = {name: value for name, value in _left(raw, NOT_SERVED, _IGNORED).items() if name not in unused}
    if isinstance(messages := wanted.get("messages"), list):
        wanted["messages"] = [
            _left(one, _NOT_SAID, _IGNORED_OF_MESSAGES) if isinstance(one, dict) else one for one in messages
        ]
    return wanted


def _left(
    raw: dict[str, Any], neutral: dict[str, tuple[object, ...]], ignored: dict[str, tuple[type, ...]]
) -> dict[str, Any]:
    return {name: value for name, value in raw.items() if not _asks_nothing(name, value, neutral, ignored)}


def _asks_nothing(
    name: str, value: Any, neutral: dict[str, tuple[object, ...]], ignored: dict[str, tuple[type, ...]]
) -> bool:
    if name in ignored:
        return value is None or type(value) in ignored[name]
    return name in neutral and (value is None or any(_same(value, one) for one in neutral[name]))


def _same(value: Any, neutral: object) -> bool:
    """Whether a value is that of a field that asks for nothing: true is no 1, though it equals it."""
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)
