"""Which type a target is computed in, on processors with units for bf16 and without."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from cutline.cloud.model import device as accelerator
from cutline.cloud.model.device import compute_dtype, stored_dtype
from cutline.errors import BundleError
from cutline.models.bundle import Bundle

BF16, FP32 = torch.bfloat16, torch.float32


@pytest.fixture
def narrow(bundle: Bundle, tmp_path: Path) -> Bundle:
    """The same target with weights of bf16, as published models have them."""
    for path in bundle.path.iterdir():
        (tmp_path / path.name).symlink_to(path.resolve())
    weights = tmp_path / "model.safetensors"
    whole = load_file(weights)
    weights.unlink()
    save_file({name: one.bfloat16() for name, one in whole.items()}, weights, metadata={"format": "pt"})
    return Bundle(tmp_path, msgspec.structs.replace(bundle.manifest))


@pytest.mark.parametrize("units", [True, False])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("asked", [None, BF16, FP32], ids=str)
def test_what_is_computed_in(
    bundle: Bundle,
    narrow: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    units: bool,
    device: str,
    asked: torch.dtype | None,
) -> None:
    monkeypatch.setattr(accelerator, "has_bf16", lambda: units)
    slow = device == "cpu" and not units
    with caplog.at_level(logging.WARNING):
        assert compute_dtype(bundle, asked, device) == (asked or FP32)
        assert len(caplog.messages) == int(slow and asked is BF16)
        assert compute_dtype(narrow, asked, device) == (asked or (FP32 if slow else BF16))
    assert bool(caplog.messages) == (slow and asked is not FP32)
    assert all("bf16" in message and "slower" in message for message in caplog.messages)


def test_what_the_weights_are_stored_in(bundle: Bundle, narrow: Bundle) -> None:
    assert (stored_dtype(bundle), stored_dtype(narrow)) == (FP32, BF16)
    (narrow.path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(BundleError, match="cannot be read"):
        stored_dtype(narrow)
    (narrow.path / "model.safetensors").unlink()
    with pytest.raises(BundleError, match="has no weights"):
        stored_dtype(narrow)
