from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cutline.core import telemetry
from cutline.testing.hub import SmallHub

NAME = "maker/small-vlm"
FILES = {
    "config.json": b'{"model_type": "smolvlm"}',
    "tokenizer.json": b"{}" * 1000,
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": bytes(range(256)) * 4096,
    "model.fp16.safetensors": b"of another type",
    "consolidated.safetensors": b"of another library",
    "pytorch_model.bin": b"pickle",
    "modeling_small.py": b"import os",
    "README.md": b"# Small",
    "onnx/model.onnx": b"graph",
    "onnx/config.json": b"{}",
    "../config.json": b"elsewhere",
    "/etc/model.safetensors": b"elsewhere",
    "..\\tokenizer.json": b"elsewhere",
}
READ = ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallHub]:
    """A hub, which HF_ENDPOINT names, and a home of its own for what is pulled."""
    made = SmallHub(NAME, FILES)
    monkeypatch.setenv("CUTLINE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(telemetry, "_GIVEN", "")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with made.serving() as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        yield made
