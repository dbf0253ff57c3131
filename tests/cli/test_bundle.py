"""`cutline bundle`: what is shown, and the device's part."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from cutline.core.wire import Wire
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.edge.generation.conditions import PLAIN
from cutline.edge.inference.target_prefix import TargetSpan, device_cuts
from cutline.errors import BundleError
from cutline.models.bundle import EMBEDDINGS, Bundle, device_files, write_calibration
from cutline.models.prices import Leak, Price, Prices
from cutline.testing.models.manifests import edit_manifest

Run = Callable[..., Any]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """The demo's target in a folder that may change."""
    return Path(shutil.copytree(TARGET, tmp_path / "target"))


def seen(run: Run, folder: Path) -> dict[str, Any]:
    ran = run("bundle", "show", folder, "--json")
    assert (ran.code, ran.err) == (0, "")
    shown: dict[str, Any] = json.loads(ran.out)
    return shown


def weights(*prefixes: str) -> int:
    """Numbers in those of the target's tensors whose names begin so."""
    with safe_open(TARGET / "model.safetensors", "np") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys() if name.startswith(prefixes)]  # noqa: SIM118
    count = 0
    for shape in shapes:
        size = 1
        for side in shape:
            size *= side
        count += size
    return count


def test_what_runs_on_either_side_adds_up(run: Run) -> None:
    shown = seen(run, TARGET)
    manifest = Bundle.open(TARGET).manifest
    assert [cut["name"] for cut in shown["cuts"]] == list(manifest.line.layers)
    assert shown["identity"] == manifest.identity
    assert shown["part"] == "whole"
    for cut in shown["cuts"]:
        assert sum(cut["parameters"]) == shown["parameters"]
        assert sum(cut["flops"]) == pytest.approx(shown["flops"])
        assert cut["here"]
    for before, after in zip(shown["cuts"], shown["cuts"][1:], strict=False):
        assert before["parameters"][0] < after["parameters"][0]
        assert before["flops"][0] < after["flops"][0]
        assert before["kv_bytes_per_token"] <= after["kv_bytes_per_token"]


def test_parameters_are_those_of_the_weights_file(run: Run) -> None:
    cuts = {cut["name"]: cut for cut in seen(run, TARGET)["cuts"]}
    tower, decoder = "model.vision_model.", "model.text_model."
    first = f"{tower}embeddings."
    layers = tuple(f"{tower}encoder.layers.{index}." for index in (0, 1))
    assert cuts["vision.2"]["parameters"][0] == weights(first, *layers)
    assert cuts["decoder.1"]["parameters"][0] == weights(tower, "model.connector.", f"{decoder}layers.0.")
    assert cuts["head"]["parameters"][1] == weights(f"{decoder}norm.", f"{decoder}embed_tokens.")  # which are tied


def test_what_crosses_is_as_large_as_said(run: Run, card: Path, worker: str) -> None:
    """Beside what a session really sends: no more than some hundred bytes of messages come on top."""
    shown = seen(run, TARGET)
    cut = next(one for one in shown["cuts"] if one["name"] == "connector")
    assert cut["boundary"] == [64, 128]
    assert (shown["cuts"][0]["boundary"], shown["cuts"][0]["bytes"]) == (None, None)
    for wire, size in cut["bytes"].items():
        ran = run("ask", card, "how many", "--worker", worker, "--mode", "split", "--cut", "connector", "--wire", wire,
            "--json")  # fmt: skip
        assert ran.code == 0, ran.err
        assert 0 < json.loads(ran.out)["bytes_up"] - size < 900


def test_a_cut_without_graphs_is_marked(run: Run, target: Path) -> None:
    name = "image-to-vision.2.onnx"
    edit_manifest(target, lambda said: said["files"].pop(name))
    (target / name).unlink()
    assert [cut["name"] for cut in seen(run, target)["cuts"] if not cut["here"]] == ["vision.2"]
    assert "vision.2 (no graphs)" in run("bundle", "show", target).out


def test_a_drafter_has_no_cuts_but_a_gate(run: Run) -> None:
    shown = seen(run, DRAFTER)
    assert shown["cuts"] == []
    assert shown["calibration"]["groups"][PLAIN]["threshold"] <= 1
    assert "decoder.onnx.data" in shown["files"]
    ran = run("bundle", "show", DRAFTER)
    assert (ran.code, ran.err) == (0, "")
    assert f"{PLAIN}: keeps answers of confidence" in ran.out


def test_prices_are_a_table(run: Run, target: Path) -> None:
    price = Price(
        cut="decoder.0", wire=Wire.INT8, keep_image_tokens=0.5, bytes_up=1234, answers=0.75, tokens=1, right=0.5
    )
    leak = Leak(cut="decoder.0", wire=Wire.INT8, recovered=0.375)
    write_calibration(Bundle.open(target), Prices(questions=60, prices=(price,), leaks=(leak,)))
    ran = run("bundle", "show", target)
    assert ran.code == 0
    line = next(line for line in ran.out.splitlines() if "of image tokens" in line)
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells == ["decoder.0, 50% of image tokens", "", "", "", "1.23 kB, 75.0%", ""]
    assert [cell.strip() for cell in ran.out.splitlines()[-2].strip("│").split("│")] == [
        *("decoder.0", "", "", "", "37.5%", "")
    ]
    shown = seen(run, target)["calibration"]
    assert shown["questions"] == 60
    assert shown["leaks"] == [{"cut": "decoder.0", "wire": "int8", "recovered": 0.375}]


def test_the_devices_part_runs_every_cut_and_nothing_else(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "device"
    ran = run("bundle", "copy", TARGET, out, "--part", "device")
    assert (ran.code, ran.out) == (0, "")
    assert "device" in ran.err
    absent = {path.name for path in TARGET.iterdir()} - {path.name for path in out.iterdir()}
    assert absent == {"config.json", "model.safetensors"}
    whole, device = Bundle.open(TARGET), Bundle.open(out, "device")
    assert device.manifest == whole.manifest
    assert EMBEDDINGS in device_files(whole.manifest)
    for cut in device_cuts(device.manifest):
        TargetSpan.open(device, cut, threads=1)
    with pytest.raises(BundleError, match=r"model\.safetensors|config\.json"):
        Bundle.open(out)
    assert seen(run, out)["part"] == "device"
    assert run("cloud", "--bundle", out, "--insecure").failed(3).count("copy the whole bundle") == 1
    assert [path.name for path in out.parent.iterdir()] == ["device"]


def test_the_devices_part_is_verified(run: Run, target: Path, tmp_path: Path) -> None:
    (target / "model.safetensors").write_bytes(b"else")  # which a device never reads
    assert run("bundle", "copy", target, tmp_path / "device", "--part", "device").code == 0
    assert "hash differs" in run("bundle", "copy", target, tmp_path / "whole").failed(3)
    (target / "image-spans.data").write_bytes(b"else")
    assert "hash differs" in run("bundle", "copy", target, tmp_path / "other", "--part", "device").failed(3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["device", "target"]


def test_a_drafter_is_copied_whole_either_way(run: Run, tmp_path: Path) -> None:
    for part in ("whole", "device"):
        assert run("bundle", "copy", DRAFTER, tmp_path / part, "--part", part).code == 0
        assert Bundle.open(tmp_path / part).manifest == Bundle.open(DRAFTER).manifest


def test_a_bundle_is_not_copied_into_itself(run: Run, target: Path) -> None:
    (target.parent / "link").symlink_to(target)
    for out in (target / "inner", target / "more" / "inner", target.parent / "link" / "inner"):
        assert "is inside" in run("bundle", "copy", target, out).failed(2)
    Bundle.open(target)


@pytest.mark.parametrize("command", ["show", "copy"])
def test_each_shows_an_example(run: Run, command: str) -> None:
    ran = run("bundle", command, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert f"Example: cutline bundle {command}" in ran.out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "Missing command"),
        (("show", "/nowhere"), 3, "no bundle at /nowhere"),
        (("copy", "/nowhere", "/nowhere/else"), 3, "no bundle at /nowhere"),
        (("copy", DRAFTER, DRAFTER), 2, "exists; choose another folder"),
        (("copy", DRAFTER, "/proc/copy"), 2, "cannot write /proc/copy"),
        (("copy", DRAFTER, "/nowhere", "--part", "cloud"), 2, "'cloud' is not one of"),
    ],
)
def test_what_cannot_be_done_is_one_line(run: Run, arguments: tuple[Any, ...], code: int, message: str) -> None:
    assert message in run("bundle", *arguments).failed(code)
