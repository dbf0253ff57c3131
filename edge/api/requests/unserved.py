"""What clients of chat completions send that changes no answer here, and the fields of OpenAI's that are not served.

docs/reference/api.md names each.
"""

from __future__ import annotations

from typing import Any

from cutline.edge.api.requests.fields import Rules

_OF_MESSAGES = Rules(
    ignored={"name": (str,)},
    inner={"content": Rules(ignored={"cache_control": (dict,)})},
    neutral={  # a client that sends an answer back sends these with it
        "annotations": ([],),
        "audio": (),
        "function_call": (),
        "reasoning": ("",),
        "reasoning_content": ("",),
        "refusal": (),
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
        "cache_prompt": (bool,),  # what was computed is kept anyway
        "context_size": (int,),  # as `num_ctx`
        "keep_alive": (str, int, float),  # the models stay as long as the agent does
        "include_reasoning": (bool,),  # no model here reasons in tokens of their own
        "metadata": (dict,),
        "num_ctx": (int,),  # the context is the model's own
        "prediction": (dict,),  # the drafter has its own
        "prompt_cache_key": (str,),
        "prompt_cache_retention": (str,),
        "safety_identifier": (str,),
        "service_tier": (str,),
        "timings_per_token": (bool,),  # more of an account than `cutline` has would be of no use here
    },
    neutral={
        "add_generation_prompt": (True,),
        "audio": (),
        "chat_template_kwargs": ({}, {"enable_thinking": False}),
        "continue_final_message": (False,),
        "echo": (False,),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "ignore_eos": (False,),
        "modalities": (["text"],),
        "n": (1,),
        "reasoning_effort": ("none",),
        "response_format": ({"type": "text"},),
        "skip_special_tokens": (True,),
        "think": (False,),
        "verbosity": ("medium",),
        "web_search_options": (),
    },
    inner={"messages": _OF_MESSAGES},
)
