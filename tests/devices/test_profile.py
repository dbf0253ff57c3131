from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutline.devices.profile import (
    Compute,
    DeviceProfile,
    DrafterTable,
    LayerTable,
    load_profile,
    parse_profile,
    profile_names,
    profile_to_toml,
)
from cutline.errors import ProfileError

ROOT = Path(__file__).resolve().parents[2]
ORDERED = (
    "raspberry-pi-4",
    "raspberry-pi-5",
    "jetson-orin-nano-8gb",
    "jetson-orin-nx-16gb",
    "jetson-agx-orin-64gb",
    "jetson-thor-t5000",
)
BOARDS = set(ORDERED)
GPUS = {"t4", "l4", "a10g", "a100-80gb", "h100", "h200"}

DATASHEET = """
name = "lab"
source = "datasheet"
date = 2026-05-03
memory = { value = 8, unit = "GB", document = "the data sheet" }
memory_bandwidth = { value = 102.4, unit = "GB/s", document = "the data sheet" }
loaded_power = { value = 15000, unit = "mW", document = "the data sheet" }
overhead = { value = 20, unit = "us", document = "the maker's own measurement" }

[compute]
fp32 = { value = 5, unit = "TFLOP/s", document = "the data sheet" }
fp16 = { value = 10, unit = "TFLOP/s", document = "the data sheet" }
int8 = { value = 20, unit = "TOP/s", document = "the data sheet: 40 sparse, halved" }
"""


def test_the_boards_and_gpus_come_along() -> None:
    assert set(profile_names()) == BOARDS | GPUS | {"cpu-server"}


@pytest.mark.parametrize("name", profile_names())
def test_a_known_profile_reads_and_every_figure_names_its_document(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.source == "datasheet"
    figures = {"memory", "memory_bandwidth", *(f"compute.{dtype}" for dtype in profile.compute.known)}
    assert figures <= profile.documents.keys()
    assert all(len(document) > 10 for document in profile.documents.values())
    assert profile.idle_watts is None  # nobody publishes one


def test_figures_are_in_plain_units() -> None:
    profile = parse_profile(DATASHEET)
    assert profile.memory_bytes == 8e9
    assert profile.memory_bandwidth == 102.4e9
    assert profile.loaded_watts == 15.0
    assert profile.overhead_seconds == pytest.approx(20e-6)
    assert profile.compute == Compute(fp32=5e12, fp16=10e12, int8=20e12)
    assert profile.compute.known == {"fp32": 5e12, "fp16": 10e12, "int8": 20e12}
    assert profile.documents["compute.int8"] == "the data sheet: 40 sparse, halved"
    assert profile.date == datetime.date(2026, 5, 3)
    assert profile.preprocess_seconds is None


def test_published_figures_are_those_of_the_datasheets() -> None:
    """Spot checks against figures that are widely known, written down here a second time."""
    t4, h100, nano = (load_profile(name) for name in ("t4", "h100", "jetson-orin-nano-8gb"))
    assert (t4.compute.fp16, t4.memory_bandwidth, t4.loaded_watts) == (65e12, 320e9, 70.0)
    assert t4.compute.bf16 is None  # Turing has none
    assert h100.compute.fp16 == pytest.approx(1979e12 / 2)
    assert (nano.accelerators["cuda"].int8, nano.memory_bandwidth) == (33e12, 102e9)
    newer, older = load_profile("raspberry-pi-5"), load_profile("raspberry-pi-4")
    assert newer.memory_bandwidth > older.memory_bandwidth


@pytest.mark.parametrize("figure", ["memory_bandwidth", "fp32", "int8"])
def test_a_larger_board_has_the_larger_figures_of_its_processor(figure: str) -> None:
    boards = [load_profile(name).on("cpu") for name in ORDERED]
    figures = [
        board.memory_bandwidth if figure == "memory_bandwidth" else getattr(board.compute, figure) for board in boards
    ]
    known = [one for one in figures if one is not None]
    assert known == sorted(known)
    assert len(known) >= 5  # a Pi 4 multiplies no int8


def test_what_a_provider_reaches_is_all_that_is_left_of_a_machine() -> None:
    board = load_profile("jetson-orin-nano-8gb")
    assert board.on("cpu").compute == board.compute
    assert board.on("cpu").accelerators == {}
    gpu = board.on("cuda")
    assert (gpu.provider, gpu.compute.fp16) == ("cuda", 17e12)
    with pytest.raises(ProfileError, match=r"orin-nano-8gb has no rates of the provider coreml, only of cpu, cuda;"):
        board.on("coreml")
    with pytest.raises(ProfileError, match=r"l4 has no rates of the provider cpu, only of cuda;"):
        load_profile("l4").on("cpu")


@pytest.mark.parametrize(
    ("named", "meant"),
    [
        ("jetson-orin-nano", "jetson-orin-nano-8gb"),
        ("raspbery-pi-5", "raspberry-pi-5"),
        ("H100s", "h100"),
        ("jetson-agx-orin", "jetson-agx-orin-64gb"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(named: str, meant: str) -> None:
    with pytest.raises(ProfileError, match=rf"'{named}' \(did you mean {meant}\?\); known are"):
        load_profile(named)


def test_the_documentation_lists_them_with_their_figures() -> None:
    lines = (ROOT / "docs/reference/profiles.md").read_text().splitlines()
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in lines if re.match(r"\| `.*` \| .* GB ", line)
    ]
    listed = {name.strip("`"): figures for name, *figures in rows}
    assert listed.keys() == set(profile_names())
    accelerated = {
        name: [float(figure) if figure else None for figure in figures]
        for name, *figures in (
            [cell.strip() for cell in line.split("|")[1:-1]] for line in lines if re.match(r"\| `[^`]*` with ", line)
        )
    }
    assert accelerated == {
        f"`{name}` with {provider}": [
            rate if rate is None else pytest.approx(rate / 1e12, rel=0.01)
            for rate in (compute.fp32, compute.fp16, compute.int8)
        ]
        for name in profile_names()
        for provider, compute in load_profile(name).accelerators.items()
    }
    for name, (memory, *figures) in listed.items():
        profile = load_profile(name)
        rates = [
            None if rate is None else rate / 1e12 for rate in map(profile.compute.known.get, ("fp32", "fp16", "int8"))
        ]
        expected = [profile.memory_bandwidth / 1e9, *rates, profile.loaded_watts]
        assert memory == f"{profile.memory_bytes / 1e9:g} GB"
        assert [float(figure) if figure else None for figure in figures] == [
            figure if figure is None else pytest.approx(figure, rel=0.01) for figure in expected
        ]


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ProfileError, match=r"'pi-6'.*a100-80gb, .*raspberry-pi-5"):
        load_profile("pi-6")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("value = 8,", "value = -1,", "memory is -1 GB; give a positive number"),
        ("value = 8,", "value = 0,", "memory_bytes is 0; give a positive number"),
        ("value = 8,", "value = nan,", "memory is nan GB"),
        ("value = 8,", 'value = "8",', "memory is not { value"),
        ("value = 8,", "", "memory is not { value"),
        ('unit = "GB",', 'unit = "GW",', "memory is in 'GW'; give it in GB, B, kB"),
        ('unit = "GB/s",', 'unit = "GB",', "memory_bandwidth is in 'GB'; give it in GB/s"),
        ("value = 102.4", "value = 0.0", "memory_bandwidth is 0; give a positive number"),
        ('memory = { value = 8, unit = "GB", document = "the data sheet" }', "", "memory is missing"),
        ('memory = { value = 8, unit = "GB", document = "the data sheet" }', "memory = 8", "memory is not { value"),
        ("memory = {", "memori = {", "memori is not a key of a profile"),
        ("memory = {", "memory_bytes = {", "memory_bytes is not a key of a profile"),
        ("date = 2026-05-03", "date = 2026", "date"),
        ("date = 2026-05-03", "", "date is missing"),
        ("fp16 = {", "fp17 = {", "fp17"),
        ("value = 10,", "value = -10,", "compute.fp16 is -10 TFLOP/s"),
        ('unit = "TFLOP/s"', 'unit = "TW"', "compute.fp32 is in 'TW'"),
        ('unit = "TOP/s"', 'unit = "TFLOP/s"', "compute.int8 is in 'TFLOP/s'; give it in GOP/s"),
        ("[compute]", "[[compute]]", "compute is not a table"),
        ("fp32 = {", "bf16 = {", "compute.fp32 is missing"),
        ("[compute]", "[accelerators]\ncuda = 3\n[compute]", "accelerators.cuda is not a table"),
        ("[compute]", "[accelerators.cuda]\n[compute]", "accelerators.cuda.fp32 is missing"),
        ('name = "lab"', 'name = "lab"\naccelerators = 3', "accelerators is not a table"),
        (
            "[compute]",
            '[accelerators.cpu]\nfp32 = { value = 5, unit = "TFLOP/s", document = "it" }\n[compute]',
            "accelerators has cpu, whose rates stand in compute",
        ),
        (', document = "the maker\'s own measurement"', "", "overhead names no document"),
        ('"datasheet"', '"hearsay"', "source"),
        ('name = "lab"', 'name = ""', "name is empty"),
        ('name = "lab"', 'name = "lab"\ncores = 0', "cores is 0"),
        ('name = "lab"', "name = ", "line 2"),
        ('name = "lab"', 'name = "\\u001b[31m"', "name has characters that do not print"),
        ('name = "lab"', "name = " + "[" * 5000, "nested too deeply"),
        ('name = "lab"', "#" * (1 << 20), "larger than 1 MiB"),
    ],
)
def test_a_bad_profile_is_refused_with_file_and_key_in_one_line(tmp_path: Path, old: str, new: str, words: str) -> None:
    file = tmp_path / "lab.toml"
    assert old in DATASHEET
    file.write_text(DATASHEET.replace(old, new))
    with pytest.raises(ProfileError) as caught:
        load_profile(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert words in message
    assert "\n" not in message


def test_a_profile_without_a_rate_of_fp32_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "lab.toml"
    file.write_text(DATASHEET.partition("[compute]")[0] + "[compute]\n")
    with pytest.raises(ProfileError, match=r"compute\.fp32 is missing"):
        load_profile(str(file))


def test_a_folder_or_a_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "noise.toml").write_bytes(b"\xff\xfe\x00")
    for bad in (tmp_path, tmp_path / "noise.toml"):
        with pytest.raises(ProfileError, match=str(bad)):
            load_profile(bad)


def test_no_name_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="no device profile ''; known are"):
        load_profile("")
    with pytest.raises(ProfileError, match=r": Is a directory$"):
        load_profile(tmp_path)


def table(**changes: Any) -> LayerTable:
    fields: dict[str, Any] = {
        "model": "a" * 64,
        "name": "target",
        "runtime": "edge",
        "dtype": "fp32",
        "context": 128,
        "layers": {"vision.0": ((64, 0.1),), "decoder.0": ((1, 0.01), (8, 0.02))},
    }
    return LayerTable(**fields | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": {}}, "layers"),
        ({"layers": {"decoder.0": ()}}, r"layers\.decoder\.0"),
        ({"layers": {"decoder.0": ((8, 0.1), (1, 0.2))}}, "rising order"),
        ({"layers": {"decoder.0": ((1, 0.1), (1, 0.2))}}, "rising order"),
        ({"layers": {"decoder.0": ((1, -0.1),)}}, r"layers\.decoder\.0 is -0\.1"),
        ({"pass_seconds": -1.0}, "pass_seconds"),
        ({"sessions": ((0, 0.1),)}, "sessions"),
    ],
)
def test_a_table_that_nobody_can_have_measured_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        table(**changes)


def test_tables_are_found_by_model_and_runtime() -> None:
    drafter = DrafterTable(
        model="d", name="drafter", precision="int4", vision_seconds=0.1, prefill=((8, 0.1),), token_seconds=0.01
    )
    edge, cloud = table(), table(runtime="cloud")
    profile = DeviceProfile(
        name="x",
        source="measured",
        date=datetime.date(2026, 1, 1),
        memory_bytes=1e9,
        memory_bandwidth=1e9,
        compute=Compute(fp32=1e9),
        tables=(cloud, edge),
        drafters=(drafter,),
    )
    assert profile.layer_table("a" * 64, "edge") is edge
    assert profile.layer_table("a" * 64, "cloud") is cloud
    assert profile.layer_table("b" * 64, "cloud") is None
    assert profile.drafter_table("d") is drafter
    assert profile.drafter_table("a") is None


figures = st.floats(1e-3, 1e15).map(lambda value: float(f"{value:.4g}"))
few = st.floats(0, 1e6).map(lambda value: float(f"{value:.4g}"))
words = st.text(max_size=12)
samples = st.dictionaries(st.integers(1, 10_000), few, min_size=1, max_size=4).map(
    lambda found: tuple(sorted(found.items()))
)
tables = st.builds(
    LayerTable,
    model=words,
    name=words,
    runtime=st.sampled_from(["edge", "cloud"]),
    dtype=words,
    context=st.integers(0, 4096),
    layers=st.dictionaries(words, samples, min_size=1, max_size=3),
    pass_seconds=few,
    sessions=samples,
)
drafters = st.builds(
    DrafterTable,
    model=words,
    name=words,
    precision=words,
    vision_seconds=few,
    prefill=samples,
    token_seconds=figures,
)
profiles = st.builds(
    DeviceProfile,
    name=words.filter(lambda name: bool(name) and name.isprintable()),
    source=st.just("measured"),
    date=st.dates(),
    memory_bytes=figures,
    memory_bandwidth=figures,
    compute=st.builds(Compute, fp32=figures, int8=st.none() | figures, fp16=st.none(), bf16=st.none() | figures),
    memory_free_bytes=st.none() | few,
    overhead_seconds=st.none() | few,
    shrink_seconds=st.none() | figures,
    idle_watts=st.none() | few,
    temperature_c=st.none() | st.integers(-40, 120).map(float),
    sustained=st.none() | figures,
    throttled=st.none() | st.booleans(),
    cores=st.none() | st.integers(1, 999),
    documents=st.dictionaries(st.sampled_from(["memory", "compute.fp32"]), words),
    notes=st.lists(words, max_size=3).map(tuple),
    missing=st.lists(words, max_size=3).map(tuple),
    versions=st.dictionaries(words, words, max_size=3),
    tables=st.lists(tables, max_size=2).map(tuple),
    drafters=st.lists(drafters, max_size=2).map(tuple),
)


@given(profiles)
def test_what_is_written_reads_back(profile: DeviceProfile) -> None:
    read = parse_profile(profile_to_toml(profile))
    assert read.tables == profile.tables
    assert read.drafters == profile.drafters
    for key in DeviceProfile.__struct_fields__:
        one, other = getattr(read, key), getattr(profile, key)
        if isinstance(one, Compute):
            assert one.known == pytest.approx(other.known, rel=1e-9)
        elif isinstance(one, float):
            assert one == pytest.approx(other, rel=1e-9)
        else:
            assert one == other
