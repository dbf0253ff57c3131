"""Libraries that report to their makers are told not to, before they are imported.

ONNX Runtime from 1.31 on looks a host of Microsoft up and sends it a device id, facts of the system, names of model
files and texts of errors, from 45 seconds after its start; it keeps quiet only where it sees a CI system. Ray counts
its users, and Hugging Face's libraries tell who loads what. Each reads the environment once, so every room that
imports one of them calls `switch_off` in its `__init__`.
"""

from __future__ import annotations

import os

SETTINGS = {
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime, and onnxruntime-genai with it
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",  # models are folders here: nothing is ever looked for on a hub
    "RAY_USAGE_STATS_ENABLED": "0",
}


def switch_off() -> None:
    """Set the environment of this process, and of those that it starts."""
    os.environ.update(SETTINGS)
