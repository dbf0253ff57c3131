"""Sources as people name them; no password is ever said."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cutline.edge.watch.frames import Folder
from cutline.edge.watch.sources import open_sources, shown
from cutline.edge.watch.video import Camera, VideoFile
from cutline.errors import InputError


def opened(*given: str) -> Any:
    return open_sources(given, every=1.0, threshold=None, once=True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("rtsp://192.0.2.9:554/stream1", "rtsp://192.0.2.9:554/stream1"),
        ("rtsp://admin:hunter2@192.0.2.9/stream1", "rtsp://…@192.0.2.9/stream1"),
        ("RTSPS://admin:p@ss/w?rd@cam/a", "RTSPS://…@cam/a"),
        ("rtsp://cam/user=admin&password=hunter2&channel=1.sdp", "rtsp://cam/user=…&password=…&channel=1.sdp"),
        ("rtsp://cam/live?channel=2&token=hunter2", "rtsp://cam/live?channel=2&token=…"),
        ("rtsp:/admin:hunter2@cam/a", "rtsp:/…@cam/a"),
        ("admin:hunter2@cam", "…@cam"),
        ("nowhere/at all", "nowhere/at all"),
    ],
)
def test_a_name_without_secrets(given: str, said: str) -> None:
    assert shown(given) == said


@given(
    st.text(min_size=4).filter(lambda text: len(set(text)) > 3), st.sampled_from(["rtsp://", "rtsps://", "rtsp:", ""])
)
@example("secret" * 1000, "rtsp://")  # a longer name than a file may have
@example("secret" * 1000, "")
def test_no_password_whatever_it_is_made_of_is_shown(password: str, scheme: str) -> None:
    secret = f"<{password}>"
    assert secret not in shown(f"{scheme}admin:{secret}@camera/stream")


def test_what_is_there_decides_what_it_is(tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    video.write_bytes(b"")
    folder, file, camera, device = opened(str(tmp_path), str(video), "rtsp://u:hunter2@cam/1", "/dev/null")
    assert isinstance(folder, Folder)
    assert isinstance(file, VideoFile)
    assert isinstance(camera, Camera)
    assert isinstance(device, Camera)
    assert [one.live for one in (folder, file, camera, device)] == [False, False, True, True]


def test_two_sources_never_share_a_name() -> None:
    names = [one.name for one in opened("rtsp://a:b@cam/1", "rtsp://c:d@cam/1", "rtsp://e:f@cam/1")]
    assert len(set(names)) == 3
    assert not any(secret in name for name in names for secret in ("a:b", "c:d", "e:f"))


@pytest.mark.parametrize("given", ["nowhere", "http://u:hunter2@cam/mjpeg", "rtsp:/u:hunter2@cam"])
def test_what_is_nothing_is_refused_without_its_password(given: str) -> None:
    with pytest.raises(InputError, match="is no folder, video file, camera") as refused:
        opened(given)
    assert "hunter2" not in str(refused.value)


def test_without_pyav_folders_do_and_the_rest_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert isinstance(opened(str(tmp_path))[0], Folder)
    for video in ("rtsp://cam/1", "/dev/null"):
        with pytest.raises(InputError, match=r"pip install '.*\[camera\]'"):
            opened(video)
