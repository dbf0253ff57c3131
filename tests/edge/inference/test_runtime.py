"""Sessions are made from a bundle's own files or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import onnxruntime
import pytest

from cutline.edge.inference import runtime
from cutline.edge.inference.runtime import open_session
from cutline.errors import BundleError, InputError
from cutline.models.bundle import Bundle


@pytest.mark.parametrize("way", ["absolute", "dots", "link", "linked folder"])
def test_weights_outside_the_graphs_folder_are_refused(bundle: Bundle, tmp_path: Path, way: str) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    shutil.copy(bundle.path / "decoder.onnx.data", outside / "weights")
    (inside / "link").symlink_to(outside / "weights")
    (inside / "folder").symlink_to(outside)
    named = {
        "absolute": str(outside / "weights"),
        "dots": "../outside/weights",
        "link": "link",
        "linked folder": "folder/weights",
    }[way]
    model = onnx.load(bundle.path / "decoder.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = named
    (inside / "decoder.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match="does not load"):
        open_session(inside / "decoder.onnx", threads=1)


def test_a_graph_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image-to-decoder.0.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match="does not load") as caught:
        open_session(tmp_path / "image-to-decoder.0.onnx", threads=1)
    assert "\n" not in str(caught.value)


def test_a_provider_that_is_not_here_is_refused(bundle: Bundle) -> None:
    for provider in ("abacus", "CPUExecutionProvider", "", "cuda"):
        with pytest.raises(InputError, match=r"has no provider '.*'; it has .*cpu"):
            open_session(bundle.file("image-to-decoder.0.onnx"), threads=1, provider=provider)


def test_a_provider_that_does_not_start_is_not_passed_over(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """As CUDA is where its libraries are missing: ONNX Runtime would go on with the CPU."""
    monkeypatch.setattr(runtime, "providers", lambda: {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"})
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: CpuAlone())
    with pytest.raises(InputError, match=r"cuda does not start .* such as cpu"):
        open_session(bundle.file("image-to-decoder.0.onnx"), threads=1, provider="cuda")


class CpuAlone:
    """A session that found nothing better."""

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


def test_providers_have_short_names() -> None:
    assert runtime.providers()["cpu"] == "CPUExecutionProvider"
    assert list(runtime.providers().values()) == onnxruntime.get_available_providers()
