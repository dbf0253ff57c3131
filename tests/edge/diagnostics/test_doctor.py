"""Diagnoses of devices as they were recorded or as they might be; the facts alone decide."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from cutline.demo.bundles import DRAFTER, TARGET
from cutline.devices.machine.board import Board, BoardHealth
from cutline.devices.machine.memory import Memory
from cutline.devices.measurement.provider_trial import Provider, Runtime
from cutline.edge.diagnostics.doctor import Diagnosis, Finding, diagnose, size
from cutline.edge.diagnostics.facts import BadBundle, BundleFacts, Facts, Served, Unserved, model_of
from cutline.models.bundle import read_manifest
from cutline.models.costs import layer_costs
from cutline.partitioner.cost import AGENT_BYTES

GB = 10**9
CPU = Provider(name="cpu", fault=None)

DRAFTING = BundleFacts(
    path="drafter",
    name="smol",
    role="drafter",
    precision="fp32",
    identity="d",
    target="t",
    calibrated=True,
    needs={"fp32": 5 * GB, "int8": 2 * GB, "int4": GB},
    cuts=(),
)
CUT = BundleFacts(
    path="target",
    name="big",
    role="target",
    precision="fp32",
    identity="t",
    target=None,
    calibrated=False,
    needs={"fp32": 8 * GB, "int8": 4 * GB, "int4": 2 * GB},
    cuts=(("vision.0", GB // 10), ("connector", GB), ("decoder.0", 2 * GB), ("head", 8 * GB)),
)
WORKER = Served(
    address="192.0.2.7:50051",
    model="t",
    name="big",
    version="0.1.0",
    start="image",
    sessions=1,
    max_sessions=16,
    rtt_ms=41.0,
    uplink_mbps=7.5,
    downlink_mbps=22.0,
)
# A Raspberry Pi 5 of 8 GB in good order.
PI = Facts(
    version="0.1.0",
    board=Board(model="Raspberry Pi 5 Model B Rev 1.0", profile="raspberry-pi-5"),
    system="Linux 6.6.31+rpt-rpi-2712",
    architecture="aarch64",
    bits=64,
    python="3.11.2",
    cores=4,
    usable=4,
    memory=Memory(total=8 * GB, free=7 * GB, limit=None, swap=GB // 5),
    disk=20 * GB,
    runtime=Runtime(version="1.31.1", providers=(CPU,)),
    provider="cpu",
    health=BoardHealth(watts=3.1, power_source="vcgencmd", celsius=52.0, throttled=False, under_volted=False),
    bundle=DRAFTING,
    worker=WORKER,
)


def of(facts: Facts = PI, **changed: Any) -> Diagnosis:
    return diagnose(msgspec.structs.replace(facts, **changed))


def bad(diagnosis: Diagnosis) -> list[Finding]:
    return [finding for finding in diagnosis.findings if finding.level != "ok"]


def only(diagnosis: Diagnosis, check: str, level: str) -> Finding:
    """The one finding that is not ok, checked to be of this kind."""
    (finding,) = bad(diagnosis)
    assert (finding.check, finding.level) == (check, level)
    assert finding.do
    assert diagnosis.well is (level == "advice")
    return finding


def test_a_board_in_good_order_is_well() -> None:
    diagnosis = of()
    assert diagnosis.well
    assert bad(diagnosis) == []
    checks = [finding.check for finding in diagnosis.findings]
    assert checks == ["board", "python", "providers", "cores", "power", "memory", "disk", "bundle", "link", "worker"]
    assert all(finding.do is None for finding in diagnosis.findings)


def test_a_throttled_pi() -> None:
    hot = BoardHealth(celsius=84.6, throttled=True, under_volted=False, throttled_before=True)
    finding = only(of(health=hot), "heat", "problem")
    assert "85 °C" in finding.what
    assert "fan" in str(finding.do)


def test_a_pi_on_a_phone_charger_is_told_of_its_supply_not_of_a_fan() -> None:
    health = BoardHealth(celsius=50.0, throttled=True, under_volted=True, under_volted_before=True)
    findings = bad(of(health=health))
    assert [(one.check, one.level) for one in findings] == [("power", "problem"), ("heat", "problem")]
    assert all("supply" in str(one.do) for one in findings)


@pytest.mark.parametrize(
    ("health", "check"),
    [
        (BoardHealth(celsius=50.0, throttled=False, throttled_before=True), "heat"),
        (BoardHealth(celsius=81.0, throttled=False), "heat"),
        (BoardHealth(under_volted=False, under_volted_before=True), "power"),
        (BoardHealth(power_mode="15W"), "power"),
    ],
)
def test_what_was_or_soon_may_be_is_advice(health: BoardHealth, check: str) -> None:
    only(of(health=health), check, "advice")


@pytest.mark.parametrize("mode", ["MAXN", "MAXN_SUPER", None])
def test_the_fastest_power_mode_is_no_trouble(mode: str | None) -> None:
    assert bad(of(health=BoardHealth(power_mode=mode))) == []


def test_a_jetson_without_swap() -> None:
    jetson = Board(model="NVIDIA Jetson Orin Nano Developer Kit", profile="jetson-orin-nano-8gb")
    finding = only(of(board=jetson, memory=Memory(total=8 * GB, free=7 * GB, limit=None, swap=0)), "swap", "advice")
    assert "swapon" in str(finding.do)
    pc = Board(model="LENOVO 20XW", profile=None)
    assert bad(of(board=pc, memory=Memory(total=8 * GB, free=7 * GB, limit=None, swap=0))) == []


@pytest.mark.parametrize(
    ("free", "advised"),
    [(5 * GB, "int8 fits"), (2 * GB, "int4 fits"), (GB, "no precision fits")],
)
def test_what_does_not_fit_is_said_with_what_would(free: int, advised: str) -> None:
    finding = only(of(memory=Memory(total=8 * GB, free=free, limit=None, swap=GB)), "memory", "problem")
    assert finding.what == f"an agent with smol needs 5.1 GB, {free / GB:.1f} GB free of 8.0 GB"
    assert advised in str(finding.do)


def test_memory_suffices_to_the_byte() -> None:
    need = int(AGENT_BYTES) + DRAFTING.needs["fp32"]
    assert bad(of(memory=Memory(total=8 * GB, free=need, limit=None, swap=GB))) == []
    only(of(memory=Memory(total=8 * GB, free=need - 1, limit=None, swap=GB)), "memory", "problem")


def test_a_containers_limit_is_named() -> None:
    finding = only(of(memory=Memory(total=64 * GB, free=2 * GB, limit=4 * GB, swap=GB)), "memory", "problem")
    assert "2.0 GB free of the 4.0 GB that the container may have" in finding.what


def test_a_target_that_fits_in_part_is_told_how_far() -> None:
    small = msgspec.structs.replace(DRAFTING, needs={"fp32": GB, "int8": GB, "int4": GB})
    finding = only(of(bundle=small, target=CUT), "cuts", "advice")
    assert finding.do == "cut at decoder.0 or before, which takes 3.1 GB in all"
    assert "9.1 GB up to head" in finding.what
    roomy = Memory(total=32 * GB, free=30 * GB, limit=None, swap=GB)
    assert bad(of(bundle=small, target=CUT, memory=roomy)) == []
    tight = Memory(total=8 * GB, free=GB + int(AGENT_BYTES), limit=None, swap=GB)
    assert "no layer of big fits" in only(of(bundle=small, target=CUT, memory=tight), "cuts", "problem").what


def test_no_space_left() -> None:
    assert only(of(disk=3 << 20), "disk", "problem").what == "3.1 MB free where the bundle is"


def test_a_provider_that_is_listed_but_broken() -> None:
    cuda = Provider(name="cuda", fault="it does not start: its driver or a library may be missing")
    runtime = Runtime(version="1.31.1", providers=(cuda, CPU))
    unused = only(of(runtime=runtime), "providers", "advice")
    assert unused.what == f"cuda is listed but does not work: {cuda.fault}"
    assert "--provider cpu" in str(unused.do)
    only(of(runtime=runtime, provider="cuda"), "providers", "problem")


def test_a_provider_that_is_not_there() -> None:
    finding = only(of(provider="cuda"), "providers", "problem")
    assert "no provider cuda; it has cpu" in finding.what


def test_a_cpu_that_cannot_compute() -> None:
    broken = Provider(name="cpu", fault="it ends its process with SIGILL")
    finding = only(of(runtime=Runtime(version="1.31.1", providers=(broken,))), "providers", "problem")
    assert "SIGILL" in finding.what


def test_onnx_runtime_that_does_not_load() -> None:
    runtime = Runtime(version=None, providers=(), fault="ImportError: libstdc++.so.6: version not found")
    assert "libstdc++" in only(of(runtime=runtime), "runtime", "problem").what


def test_a_32_bit_python() -> None:
    assert "32 bits" in only(of(bits=32), "python", "problem").what


def test_a_container_with_few_cores() -> None:
    assert only(of(usable=1), "cores", "advice").what == "1 of 4 cores may be used"


def test_a_worker_of_another_model() -> None:
    other = msgspec.structs.replace(WORKER, model="x", name="other")
    finding = only(of(worker=other), "worker", "problem")
    assert finding.what == "192.0.2.7:50051 serves other, another model than smol was made for"


@pytest.mark.parametrize(
    ("changed", "level"),
    [({"start": "decoder.2"}, "problem"), ({"sessions": 16}, "advice"), ({"version": "0.2.0"}, "advice")],
)
def test_a_worker_that_is_not_quite_right(changed: dict[str, Any], level: str) -> None:
    only(of(worker=msgspec.structs.replace(WORKER, **changed)), "worker", level)


def test_a_worker_that_does_not_answer() -> None:
    fault = "no worker answers at 192.0.2.7:50051; is it running, and the link up?"
    finding = only(of(worker=Unserved(address="192.0.2.7:50051", fault=fault)), "worker", "problem")
    assert finding.what == "no worker answers at 192.0.2.7:50051"
    assert of(worker=None).well


def test_a_bundle_that_does_not_open_says_what_to_do() -> None:
    fault = "decoder.onnx is missing from drafter; export the bundle again"
    finding = only(of(bundle=BadBundle(path="drafter", fault=fault)), "bundle", "problem")
    assert (finding.what, finding.do) == ("decoder.onnx is missing from drafter", "export the bundle again")


def test_bundles_that_do_not_belong_together() -> None:
    small = msgspec.structs.replace(DRAFTING, needs={"fp32": 1, "int8": 1, "int4": 1})
    light = msgspec.structs.replace(CUT, cuts=(("vision.0", 1),))
    assert bad(of(bundle=small, target=light)) == []
    only(of(bundle=small, target=msgspec.structs.replace(light, identity="x")), "target", "problem")
    only(of(bundle=small, target=small), "target", "problem")
    only(of(bundle=msgspec.structs.replace(CUT, needs=small.needs)), "bundle", "problem")
    only(of(bundle=msgspec.structs.replace(small, calibrated=False)), "gate", "advice")


def test_what_a_bundle_needs_is_the_arithmetic_of_its_manifest() -> None:
    manifest = read_manifest(TARGET)
    model = model_of("target", manifest)
    decoder = manifest.decoder
    cache = 2 * decoder.layers * decoder.kv_heads * decoder.head_dim * 4 * decoder.context
    assert model.needs["fp32"] == 4 * sum(manifest.parameters) + cache
    assert model.needs["fp32"] > model.needs["int8"] > model.needs["int4"]
    assert [cut for cut, _ in model.cuts] == list(manifest.line.layers[1:])
    assert model.cuts[0] == ("vision.0", 4 * manifest.parameters[0])
    assert dict(model.cuts)["decoder.0"] == 4 * sum(manifest.parameters[: manifest.line.place("decoder.0")])
    assert len(layer_costs(manifest)) == len(manifest.parameters)
    assert model_of("drafter", read_manifest(DRAFTER)).target == manifest.identity


def test_facts_survive_json() -> None:
    diagnosis = of(target=CUT)
    assert msgspec.json.decode(msgspec.json.encode(diagnosis), type=dict)["facts"]["board"]["model"] == PI.board.model


@pytest.mark.parametrize(
    ("count", "said"), [(5.06e9, "5.1 GB"), (3.8e9, "3.8 GB"), (111e6, "111 MB"), (9.96e6, "10.0 MB"), (12, "12 B")]
)
def test_sizes_for_people(count: float, said: str) -> None:
    assert size(count) == said
