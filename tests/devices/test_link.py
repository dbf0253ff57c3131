from __future__ import annotations

from pathlib import Path

import pytest

from cutline.devices.link import LinkProfile, link_names, load_link
from cutline.errors import ProfileError

PROFILE = """
name = "lab"
rtt_ms = 20
uplink_mbps = 2.5
downlink_mbps = 10
source = "measured"
reference = "the lab's own record"
"""


def test_the_six_links_come_along() -> None:
    assert set(link_names()) == {"ethernet", "wifi", "5g", "4g", "3g", "satellite"}


@pytest.mark.parametrize("name", link_names())
def test_a_known_link_reads_and_says_where_its_figures_come_from(name: str) -> None:
    link = load_link(name)
    assert link.name == name
    assert len(link.reference) > 20


def test_slower_generations_are_slower() -> None:
    newer, older = load_link("4g"), load_link("3g")
    assert newer.rtt_ms < older.rtt_ms
    assert newer.uplink_mbps > older.uplink_mbps
    assert newer.downlink_mbps > older.downlink_mbps


def test_a_link_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "lab.toml"
    file.write_text(PROFILE + "jitter_ms = 3\nloss = 0.01\noutages = [[1, 0.5], [4.0, 2]]\n")
    assert load_link(file) == load_link(str(file))
    assert load_link(file) == LinkProfile(
        name="lab",
        rtt_ms=20.0,
        uplink_mbps=2.5,
        downlink_mbps=10.0,
        source="measured",
        reference="the lab's own record",
        jitter_ms=3.0,
        loss=0.01,
        outages=((1.0, 0.5), (4.0, 2.0)),
    )


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ProfileError, match=r"'6g'.*3g, 4g, 5g, ethernet, satellite, wifi"):
        load_link("6g")


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("rtt_ms = 20", "", "rtt_ms"),
        ("rtt_ms = 20", "rtt_ms = -1", "rtt_ms"),
        ("rtt_ms = 20", "rtt_ms = inf", "rtt_ms"),
        ("rtt_ms = 20", "rtt_ms = nan", "rtt_ms"),
        ("rtt_ms = 20", 'rtt_ms = "20"', "rtt_ms"),
        ("rtt_ms = 20", "rtt_ms = 1e308", "rtt_ms"),
        ("uplink_mbps = 2.5", "uplink_mbps = 1e-320", "uplink_mbps"),
        ("downlink_mbps = 10", "downlink_mbps = 1e7", "downlink_mbps"),
        ('name = "lab"', 'name = "\\u001b[31m"', "name"),
        ('name = "lab"', "name = " + "[" * 5000, "nested too deeply"),
        ('name = "lab"', "#" * (1 << 20), "larger than 1 MiB"),
        ("rtt_ms = 20", "rtt_ms = true", "rtt_ms"),
        ("uplink_mbps = 2.5", "uplink_mbps = 0", "uplink_mbps"),
        ("downlink_mbps = 10", "downlink_mbps = inf", "downlink_mbps"),
        ("rtt_ms = 20", "rtt_ms = 20\njitter_ms = 21", "jitter_ms"),
        ("rtt_ms = 20", "rtt_ms = 20\nloss = 1.0", "loss"),
        ("rtt_ms = 20", "rtt_ms = 20\nloss = -0.1", "loss"),
        ("rtt_ms = 20", "rtt_ms = 20\noutages = [[5, 2], [6, 1]]", "outages"),
        ("rtt_ms = 20", "rtt_ms = 20\noutages = [[5, 0]]", "outages"),
        ("rtt_ms = 20", "rtt_ms = 20\noutages = [5, 1]", "outages"),
        ("rtt_ms = 20", "rtt_ms = 20\nlatency = 20", "latency"),
        ('"measured"', '"hearsay"', "source"),
        ("rtt_ms = 20", "rtt_ms = ", "line 3"),
    ],
)
def test_a_bad_profile_is_refused_with_file_and_key_in_one_line(tmp_path: Path, old: str, new: str, key: str) -> None:
    file = tmp_path / "lab.toml"
    assert old in PROFILE
    file.write_text(PROFILE.replace(old, new))
    with pytest.raises(ProfileError) as caught:
        load_link(file)
    message = str(caught.value)
    assert str(file) in message
    assert key in message
    assert "\n" not in message


def test_a_folder_or_a_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "noise.toml").write_bytes(b"\xff\xfe\x00")
    for bad in (tmp_path, tmp_path / "noise.toml"):
        with pytest.raises(ProfileError, match="does not read"):
            load_link(bad)


def test_no_name_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="no link profile ''; known are"):
        load_link("")
    with pytest.raises(ProfileError, match=r"does not read: Is a directory$"):
        load_link(tmp_path)
