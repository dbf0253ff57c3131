"""Switches the telemetry of libraries off, before they are imported.

From 1.31 on ONNX Runtime sends a device id, facts of the system, names of model files and error texts to a host of
Microsoft's, 45 seconds after its start, unless it sees a CI system. Ray counts its users, and Hugging Face's libraries
report which models are loaded. Each reads the environment once, so every room that imports one of them calls
`switch_off` in its `__init__`.
"""

from __future__ import annotations

import os

# What huggingface_hub would read, before it is overwritten below.
_GIVEN = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""

SETTINGS = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime, and onnxruntime-genai with it
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",  # models are local folders: nothing is fetched from a hub but by `cutline pull`
    "RAY_USAGE_STATS_ENABLED": "0",
}


def switch_off() -> None:
    """Set the environment of this process and of its children."""
    os.environ.update(SETTINGS)


def is_offline_wanted() -> bool:
    """Whether the user set HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE, so that not even `cutline pull` may ask a hub.

    The environment does not tell any more, as `switch_off` sets it for every other command.
    """
    return _GIVEN.upper() in {"1", "ON", "YES", "TRUE"}  # as huggingface_hub reads it
