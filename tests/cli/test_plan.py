from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click import Command, Context
from typer.main import get_command

from cutline.cli import completion
from cutline.cli.main import app
from cutline.core.wire import Wire
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.devices.link import link_names
from cutline.devices.profile import (
    Compute,
    DeviceProfile,
    DrafterTable,
    LayerTable,
    Samples,
    load_profile,
    profile_names,
    profile_to_toml,
)
from cutline.errors import BundleError, ImageError, InputError, ProfileError
from cutline.models.bundle import Bundle, write_calibration, write_manifest
from cutline.models.prices import Leak, open_prices
from cutline.models.shapes import known_shapes

Run = Callable[..., Any]


def planned(run: Run, *arguments: str | Path) -> dict[str, Any]:
    ran = run("plan", *arguments, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.count("\n") == 1
    found: dict[str, Any] = json.loads(ran.out)
    return found


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """A profile that was measured with the demo's models, which take a second a layer here."""
    target, drafter = Bundle.open(TARGET).manifest, Bundle.open(DRAFTER).manifest
    second: Samples = ((64, 1.0),)
    layers = dict.fromkeys(target.line.layers, second)
    profile = msgspec.structs.replace(
        load_profile("raspberry-pi-5"),
        name="slow",
        source="measured",
        documents={},
        idle_watts=1.0,
        compute=Compute(fp32=1e9),
        tables=(
            LayerTable(
                model=target.identity,
                name="t",
                runtime="edge",
                dtype="fp32",
                context=64,
                layers=layers,
                pass_seconds=0.0,
            ),
        ),
        drafters=(
            DrafterTable(
                model=drafter.identity,
                name="d",
                precision="int8",
                vision_seconds=1.0,
                prefill=((64, 1.0),),
                token_seconds=0.5,
            ),
        ),
    )
    assert isinstance(profile, DeviceProfile)
    path = tmp_path / "slow.toml"
    path.write_text(profile_to_toml(profile))
    return path


def test_the_plan_the_sentence_and_the_runners_up(run: Run) -> None:
    ran = run("plan", "--exact")
    assert (ran.code, ran.err) == (0, "")
    for words in ("plan", "bytes", "exact", " is quickest: ", "Mbit/s up", "cloud at image", "datasheet"):
        assert words in ran.out


def test_json_says_everything(run: Run) -> None:
    found = planned(run)
    assert {"plan", "why", "notes", "runners_up", "front", "asked", "conditions", "considered", "plans"} <= set(found)
    assert found["plans"] is None
    plan = found["plan"]
    assert plan["mode"] in ("edge", "cloud", "split", "draft", "auto")
    assert sum(plan["parts_ms"].values()) == pytest.approx(plan["latency_ms"])
    assert plan in found["front"]
    modes = [plan["mode"], *(one["mode"] for one in found["runners_up"])]
    assert len(set(modes)) == len(modes)
    assert found["asked"]["image_bytes"] > 1000


def test_explain_shows_every_plan_by_part(run: Run) -> None:
    ran = run("plan", "--explain")
    for words in (
        "edge",
        "cloud at image",
        "split at decoder.0 in int4",
        "draft at vision.2 in int8",
        "upload",
        "trips",
    ):
        assert words in ran.out
    found = planned(run, "--explain")
    assert len(found["plans"]) == found["considered"] > 100


def test_a_faster_link_is_no_slower_and_options_take_the_links_place(run: Run) -> None:
    slow, fast = (planned(run, "--exact", "--link", link)["plan"]["latency_ms"] for link in ("satellite", "ethernet"))
    assert fast < slow
    given = planned(run, "--rtt-ms", "123", "--uplink-mbps", "2", "--queue-ms", "7")["conditions"]
    assert given["rtt"] == pytest.approx(0.123)
    assert given["uplink"] == 250_000
    assert given["queue"] == pytest.approx(0.007)


def test_limits_hold(run: Run) -> None:
    stays = planned(run, "--exact", "--image-must-stay")["plan"]
    assert stays["cut"] not in ("image", "vision.0")
    assert stays["exact"]
    assert planned(run, "--min-cut", "decoder.0", "--mode", "split")["plan"]["cut"] == "decoder.0"
    small = planned(run, "--mode", "split", "--max-uplink-bytes", "3000", "--min-agreement", "0")["plan"]
    assert small["bytes_up"] <= 3000
    assert planned(run, "--min-agreement", "0")["plan"]["mode"] == "edge"
    assert planned(run, "--exact", "--objective", "cloud-cost")["plan"]["cloud_ms"] < stays["cloud_ms"]


def test_what_leaks_is_bounded_and_shown(run: Run, tmp_path: Path) -> None:
    target = Path(shutil.copytree(TARGET, tmp_path / "target"))
    prices = open_prices(Bundle.open(target))
    assert prices is not None
    leaks = tuple(Leak(cut=cut, wire=Wire.FLOAT32, recovered=x) for cut, x in (("vision.2", 0.75), ("decoder.0", 0.25)))
    write_calibration(Bundle.open(target), msgspec.structs.replace(prices, leaks=leaks))
    bounded = ("--target", target, "--exact", "--max-leak", "0.5")
    found = planned(run, *bounded, "--explain")
    assert (found["plan"]["cut"], found["plan"]["leak"]) == ("decoder.0", 0.25)
    by_cut = {(one["cut"], one["wire"]): one["leak"] for one in found["plans"] if one["mode"] == "split"}
    assert by_cut["vision.2", "int4"] == 0.75
    assert by_cut["vision.1", "fp32"] is None
    assert "with a leak of 0.25" in " ".join(run("plan", *bounded).out.split())
    unmeasured = run("plan", "--target", target, "--exact", "--max-leak", "0.2").failed(InputError.exit_code)
    assert "0.2 of a picture leaking" in unmeasured


def test_measured_times_count_where_the_profile_has_them(run: Run, measured: Path) -> None:
    found = planned(run, "--edge", measured, "--explain", "--min-agreement", "0")
    by_cut = {plan["cut"]: plan for plan in found["plans"] if plan["mode"] == "split" and plan["wire"] == "fp32"}
    assert by_cut["vision.1"]["parts_ms"]["edge"] == pytest.approx(2000)
    assert by_cut["decoder.0"]["parts_ms"]["edge"] == pytest.approx(6000)
    alone = next(plan for plan in found["plans"] if plan["mode"] == "edge")
    assert alone["parts_ms"]["drafter"] == pytest.approx(2000 + 15 * 500, rel=0.2)
    assert not any("slow" in note and "rough" in note for note in found["notes"])
    energy = planned(run, "--edge", measured, "--objective", "energy", "--exact")["plan"]
    assert energy["mode"] == "cloud"
    assert energy["energy_j"] > 0


def test_a_drafter_that_is_not_calibrated_has_no_gate(run: Run, bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    write_manifest(bundle, msgspec.structs.replace(manifest, calibration=None))
    found = planned(run, "--bundle", bundle, "--explain")
    assert {plan["mode"] for plan in found["plans"]} == {"edge", "cloud", "split", "draft"}
    assert any("not calibrated" in note for note in found["notes"])
    assert "not calibrated" in run("plan", "--bundle", bundle, "--mode", "auto").failed(BundleError.exit_code)


def test_the_image_that_is_asked_about(run: Run, card: Path) -> None:
    one = planned(run, "--image", card, "--prompt-tokens", "60", "--answer-tokens", "3")["asked"]
    assert (one["prompt_tokens"], one["answer_tokens"]) == (60, 3)
    assert 1000 < one["image_bytes"] <= card.stat().st_size


@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf"])
def test_the_plot_is_drawn(run: Run, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if suffix != ".svg":  # the whole plane is drawn there
        monkeypatch.setattr("cutline.cli.planning.plot._STEPS", 12)
    path = tmp_path / f"plan{suffix}"
    assert run("plan", "--plot", path).code == 0
    assert path.stat().st_size > 5000
    if suffix == ".svg":
        drawn = path.read_text()
        run("plan", "--plot", path)
        assert path.read_text() == drawn


@pytest.mark.parametrize(
    ("wrong", "said", "kind"),
    [
        (("--edge", "toaster"), "toaster", ProfileError),
        (("--cloud", "none.toml"), "none.toml", ProfileError),
        (("--link", "6g"), "6g", ProfileError),
        (("--objective", "speed"), "latency, energy, cloud-cost", InputError),
        (("--mode", "magic"), "edge, cloud, split, draft, auto", InputError),
        (("--min-cut", "decoder.99"), "no cut", InputError),
        (("--max-latency-ms", "0"), "--max-latency-ms is 0", InputError),
        (("--max-latency-ms", "nan"), "--max-latency-ms", InputError),
        (("--max-uplink-bytes", "-5"), "--max-uplink-bytes", InputError),
        (("--max-energy-j", "inf"), "--max-energy-j", InputError),
        (("--rtt-ms", "-1"), "--rtt-ms", InputError),
        (("--uplink-mbps", "0"), "--uplink-mbps", InputError),
        (("--uplink-mbps", "1e-320"), "give a number from 0.001 to 1e+06", InputError),
        (("--rtt-ms", "1e308"), "give a number from 0.001 to 600000", InputError),
        (("--queue-ms", "1e308"), "--queue-ms", InputError),
        (("--edge", ""), "no device profile ''", ProfileError),
        (("--link", ""), "no link profile ''", ProfileError),
        (("--queue-ms", "-1"), "--queue-ms", InputError),
        (("--acceptance", "1.5"), "--acceptance", InputError),
        (("--min-agreement", "2"), "--min-agreement", InputError),
        (("--max-leak", "1.5"), "--max-leak", InputError),
        (("--answer-tokens", "0"), "--answer-tokens", InputError),
        (("--prompt-tokens", "16"), "--prompt-tokens", InputError),
        (("--prompt-tokens", "510"), "context of 512", InputError),
        (("--image", "none.png"), "none.png", ImageError),
        (("--plot", "plan.doc"), ".svg, .png, .pdf", InputError),
        (("--plot", "nowhere/plan.svg"), "no such folder", InputError),
        (("--target", str(DRAFTER)), "does not draft for", InputError),
        (("--target", "nowhere"), "nowhere", InputError),
        (("--max-latency-ms", "20", "--exact"), "no plan keeps to 20 ms and exact answers; the nearest is", InputError),
        (("--exact", "--mode", "auto"), "no plan keeps to exact answers", InputError),
    ],
)
def test_bad_input_is_one_line(run: Run, wrong: tuple[str, ...], said: str, kind: type[InputError]) -> None:
    assert said in run("plan", *wrong).failed(kind.exit_code)


def test_energy_without_power(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "unknown.toml"
    profile = load_profile("raspberry-pi-5")
    documents = {key: value for key, value in profile.documents.items() if key != "loaded_power"}
    path.write_text(profile_to_toml(msgspec.structs.replace(profile, loaded_watts=None, documents=documents)))
    assert "has no power" in run("plan", "--edge", path, "--objective", "energy").failed(2)
    assert planned(run, "--edge", path)["plan"]["energy_j"] is None


def test_a_board_without_the_memory(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    profile = load_profile("raspberry-pi-5")
    path.write_text(profile_to_toml(msgspec.structs.replace(profile, memory_bytes=50e6)))
    message = run("plan", "--edge", path).failed(2)
    assert "no plan keeps to 50 MB of memory" in message
    assert "50 MB are free; no precision fits" in message


def test_no_torch_is_loaded() -> None:
    code = (
        "import sys; sys.argv = ['cutline', 'plan', '--json']\n"
        "from cutline.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "sys.exit(next((name for name in ('torch', 'transformers', 'matplotlib', 'onnx') if name in sys.modules), 0))"
    )
    root = Path(__file__).resolve().parents[2] / ".dev"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_everything_known_by_name_is_listed(run: Run) -> None:
    ran = run("plan", "--list")
    assert (ran.code, ran.err) == (0, "")
    for words in ("raspberry-pi-5", "jetson-orin-nano-8gb", "satellite", "smolvlm-256m", "qwen2.5-vl-3b", "cuda"):
        assert words in ran.out
    known = json.loads(run("plan", "--list", "--json").out)
    assert [one["name"] for one in known["devices"]] == list(profile_names())
    assert [one["name"] for one in known["links"]] == list(link_names())
    assert [one["name"] for one in known["models"]] == list(known_shapes())


def test_a_shell_completes_the_names() -> None:
    assert completion.devices("jetson-orin") == ["jetson-orin-nano-8gb", "jetson-orin-nx-16gb"]
    assert completion.links("sat") == ["satellite"]
    assert completion.shapes("smol") == ["smolvlm-256m", "smolvlm-500m"]
    options = get_command(app).commands["plan"].params  # type: ignore[attr-defined]
    for option in ("edge", "cloud", "link", "bundle", "target"):
        (one,) = (param for param in options if param.name == option)
        assert one.shell_complete(Context(Command("plan")), "") != []


def test_published_models_are_planned_for_before_anything_is_exported(run: Run) -> None:
    pair = ("--bundle", "smolvlm-256m", "--target", "smolvlm-500m")
    found = planned(run, *pair, "--edge", "jetson-orin-nano-8gb", "--exact", "--explain")
    assert {plan["mode"] for plan in found["plans"]} == {"edge", "cloud", "split", "draft"}
    assert {plan["cut"] for plan in found["plans"]} >= {"vision.11", "decoder.0", "decoder.31", "head"}
    assert any("nothing of them was run" in note for note in found["notes"])
    assert found["asked"]["prompt_tokens"] > 13 * 64  # a photograph is twelve tiles and the whole
    larger = planned(run, "--target", "qwen2.5-vl-7b", "--edge", "jetson-agx-orin-64gb", "--exact")
    assert larger["plan"]["cloud_ms"] > found["plan"]["cloud_ms"]
    # A pair whose towers differ; rows that cross before the layers that take what goes beside them are wider.
    pair = ("--bundle", "qwen3-vl-2b", "--target", "qwen3-vl-8b")
    sent = {
        plan["cut"]: plan["bytes_up"]
        for plan in planned(run, *pair, "--edge", "jetson-agx-orin-64gb", "--explain", "--mode", "split")["plans"]
        if plan["wire"] == "fp16"
    }
    assert sent["decoder.0"] > 1.2 * sent["decoder.1"] > 1.2 * sent["decoder.2"] > 1.2 * sent["decoder.3"]


def test_only_what_runs_on_the_device_counts(run: Run) -> None:
    given = ("--target", "smolvlm-256m", "--edge", "jetson-orin-nano-8gb", "--mode", "edge", "--min-agreement", "0")
    slow, fast = planned(run, *given), planned(run, *given, "--provider", "cuda")
    assert slow["plan"]["latency_ms"] > 3 * fast["plan"]["latency_ms"]
    assert any("planned by what cpu reaches" in note and "--provider cuda" in note for note in slow["notes"])
    assert any("planned by what cuda reaches" in note for note in fast["notes"])
    message = run("plan", "--edge", "raspberry-pi-5", "--provider", "cuda").failed(ProfileError.exit_code)
    assert "raspberry-pi-5 has no rates of the provider cuda, only of cpu" in message


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--edge", "jetson-orin-nano"), "did you mean jetson-orin-nano-8gb?"),
        (("--link", "sattelite"), "did you mean satellite?"),
        (("--target", "smolvlm-500"), "did you mean smolvlm-500m?"),
        (("--bundle", "smolvlm-256m", "--target", "qwen2.5-vl-3b"), "they prepare images differently"),
        (("--bundle", str(DRAFTER), "--target", "smolvlm-256m"), "give two shapes or two bundles"),
    ],
)
def test_a_name_that_is_not_known_is_answered_with_one_that_is(run: Run, wrong: tuple[str, ...], said: str) -> None:
    assert said in run("plan", *wrong).failed(InputError.exit_code)


def test_limits_that_exclude_each_other_are_told_as_json(run: Run) -> None:
    ran = run("plan", "--max-latency-ms", "20", "--exact", "--json")
    assert ran.code == InputError.exit_code
    assert "no plan keeps to 20 ms and exact answers" in ran.err
    found = json.loads(ran.out)
    assert (found["plan"], found["within_limits"]) == (None, 0)
    assert found["why"] in ran.err
    assert found["considered"] > 100
