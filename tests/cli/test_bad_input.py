"""Whatever is wrong: one line on stderr, a documented exit code, no traceback, nothing on stdout."""

from __future__ import annotations

import io
import socket
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image

from cutline.cli.ask import _tell
from cutline.edge.generation.result import Answer, Lost
from cutline.errors import (
    AccessDenied,
    BundleError,
    CutlineError,
    ImageError,
    InputError,
    ModelMismatch,
    PromptError,
    WorkerBusy,
    WorkerFailed,
    WorkerForgot,
    WorkerUnavailable,
)

Run = Callable[..., Any]
NOBODY = "127.0.0.1:1"
COUNTS = ("latency_ms", "ttft_ms", "bytes_up", "bytes_down", "rounds", "drafted", "accepted")
NOTHING = ("exact", "cut", "wire", "confidence")
ANSWER: dict[str, Any] = {
    "text": "",
    "tokens": [],
    "mode": "draft",
    "complete": True,
    **dict.fromkeys(COUNTS, 0),
    **dict.fromkeys(NOTHING),
}


def saved(mode: str = "RGB", size: tuple[int, int] = (64, 64), kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind, **options)
    return file.getvalue()


def bomb() -> bytes:
    """A whole PNG of 13000x13000 black or white pixels in about 20 KB."""
    header = struct.pack(">IIBBBBB", 13000, 13000, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(13000 * (1 + 13000 // 8)), 9)), (b"IEND", b""))
    framed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


IMAGES: dict[str, Callable[[], bytes]] = {
    "not an image": lambda: b"Dear Sir or Madam",
    "empty": lambda: b"",
    "truncated": lambda: saved()[:60],
    "cut in its data": lambda: saved("RGB", (512, 512), "JPEG")[:-700],
    "a bomb": bomb,
    "1x1": lambda: saved(size=(1, 1)),
    "a thread": lambda: saved(size=(2000, 8)),
    "16-bit": lambda: saved("I;16"),
    "animated WebP": lambda: saved(
        kind="WEBP", save_all=True, append_images=[Image.new("RGB", (64, 64), "red")], duration=50
    ),
    "animated PNG": lambda: saved(save_all=True, append_images=[Image.new("RGB", (64, 64), "red")]),
    "a TIFF": lambda: saved(kind="TIFF"),
    "a script": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n",
}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_that_is_not_taken(run: Run, tmp_path: Path, name: str) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(IMAGES[name]())
    assert path.stat().st_size < 25_000
    for mode in ("edge", "cloud"):
        run("ask", path, "What?", "--mode", mode, "--worker", NOBODY).failed(ImageError.exit_code)


def test_a_file_that_cannot_be_read(run: Run, tmp_path: Path) -> None:
    assert "No such file" in run("ask", tmp_path / "none.png", "What?").failed(2)
    assert "directory" in run("ask", tmp_path, "What?").failed(2)


@pytest.mark.parametrize(
    "command",
    [
        ("ask", "{}", "What?"),
        ("bundle", "show", "{}"),
        ("calibrate", "--data", "{}"),
        ("config", "show", "edge", "--config", "{}"),
        ("demo", "--report", "{}/report.html"),
        ("eval", "{}"),
        ("export", "{}", "--role", "target"),
        ("journal", "show", "{}"),
        ("keys", "init", "{}"),
        ("pair", "check", "{}", "{}"),
        ("plan", "--edge", "{}"),
        ("watch", "--source", "{}", "--ask", "What?"),
    ],
    ids=lambda command: command[0],
)
def test_a_name_that_is_too_long_for_a_file(run: Run, command: tuple[str, ...]) -> None:
    code = BundleError.exit_code if command[0] in ("bundle", "pair") else InputError.exit_code
    line = run(*(part.format("a" * 300) for part in command)).failed(code)
    assert ("is no folder, video file" if command[0] == "watch" else "File name too long") in line


def test_a_file_without_an_end(run: Run) -> None:
    assert "32 MiB" in run("ask", "/dev/zero", "What?").failed(2)


@pytest.mark.parametrize("text", ["", "  \t\n", "why " * 300, "x" * 200_000, "\udcff", "\ufdd0"])
def test_a_question_that_cannot_be_asked(run: Run, card: Path, text: str) -> None:
    run("ask", card, text, "--mode", "edge").failed(PromptError.exit_code)


@pytest.mark.parametrize(
    "wrong",
    [
        ("--mode", "magic"),
        ("--mode", "EDGE"),
        ("--magic",),
        ("--mode",),
        ("one", "more"),
        ("--effort", "2"),
        ("--effort", "nan"),
        ("--temperature", "-1"),
        ("--temperature", "warm"),
        ("--top-p", "0"),
        ("--top-k", "-1"),
        ("--seed", "-2"),
        ("--seed", str(2**63)),
        ("--max-tokens", "0"),
        ("--max-tokens", "1.5"),
        ("--timeout", "0"),
        ("--timeout", "nan"),
        ("--threads", "0"),
        ("--worker", ""),
        ("--worker", "host"),
        ("--worker", "host:port"),
        ("--worker", "127.0.0.1:99999"),
        ("--agent", NOBODY),
        ("--agent", f"http://{NOBODY}", "--worker", NOBODY),
        ("--wire", "fp8"),
        ("--mode", "split"),
        ("--mode", "split", "--cut", "image", "--worker", NOBODY),
        ("--mode", "cloud", "--cut", "decoder.1", "--worker", NOBODY),
        ("--mode", "edge", "--cut", "vision.1"),
        ("--mode", "split", "--cut", "vision.9", "--worker", NOBODY),
        ("--mode", "draft", "--cut", "decoder.9", "--worker", NOBODY),
        ("--cut", ""),
        ("--cut", "end"),
        ("--cut", "x" * 10_000),
        ("--cut", "decoder.1", "--keep-image-tokens", "0"),
        ("--cut", "decoder.1", "--keep-image-tokens", "1.5"),
        ("--cut", "decoder.1", "--keep-image-tokens", "nan"),
        ("--cut", "vision.1", "--keep-image-tokens", "0.5"),
        ("--keep-image-tokens", "0.5"),
        ("--provider", "abacus"),
        ("--provider", ""),
        ("--provider", "cpu", "--agent", f"http://{NOBODY}"),
        ("--exact",),
        ("--image-must-stay", "--worker", NOBODY),
        ("--exact", "--mode", "cloud", "--worker", NOBODY),
        ("--max-latency-ms", "0"),
        ("--max-latency-ms", "nan"),
        ("--min-agreement", "1.1"),
        ("--edge-profile", "raspberry-pi-5"),
        ("--edge-profile", "raspberry-pi-5", "--cloud-profile", "l4", "--worker", NOBODY),
        ("--edge-profile", "raspberry-pi-5", "--cloud-profile", "l4", "--link", "4g"),
        ("--edge-profile", "abacus", "--cloud-profile", "l4", "--link", "4g", "--worker", NOBODY),
        ("--edge-profile", "raspberry-pi-5", "--cloud-profile", "l4", "--link", "string", "--worker", NOBODY),
        ("--link", "4g", "--agent", f"http://{NOBODY}"),
        ("--notice", "5", "--agent", f"http://{NOBODY}"),
        ("--upstream-model", "big", "--agent", f"http://{NOBODY}"),
        ("--upstream-key-file", "key", "--agent", f"http://{NOBODY}"),
        ("--upstream-key-file", "key"),
        ("--upstream", "http://192.0.2.1/v1"),
        ("--agent", "http://[::1"),
        ("--agent", ""),
    ],
    ids=" ".join,
)
def test_an_option_that_does_not_fit(run: Run, card: Path, wrong: tuple[str, ...]) -> None:
    run("ask", card, "What?", *wrong).failed(InputError.exit_code)


@pytest.mark.parametrize(
    "arguments",
    [
        ("magic",),
        ("--magic",),
        ("ask",),
        ("ask", "image.png"),
        ("cloud", "--listen", "127.0.0.1:0"),
        ("cloud", "--listen", "0.0.0.0:0", "--insecure"),
        ("edge", "--listen", "127.0.0.1:0"),
        ("cloud", "--listen", "here"),
        ("cloud", "--listen", "127.0.0.1:"),
        ("cloud", "--listen", "127.0.0.1:²"),
        ("cloud", "--listen", "127.0.0.1:65536"),
        ("cloud", "--listen", "0.0.0.0:0"),
        ("cloud", "--listen", "[::]:0"),
        ("cloud", "--insecure", "--device", "abacus"),
        ("cloud", "--insecure", "--device", "cuda:x"),
        ("cloud", "--insecure", "--device", "cuda:1", "--tensor-parallel", "2"),
        ("cloud", "--insecure", "--device", "meta"),
        ("cloud", "--insecure", "--device", "cuda:99"),
        ("cloud", "--insecure", "--max-sessions", "0"),
        ("cloud", "--insecure", "--context", "1"),
        ("cloud", "--insecure", "--threads", "0"),
        ("cloud", "--insecure", "--layers", "decoder.1"),
        ("cloud", "--insecure", "--layers", "decoder.2:decoder.2", "--next", NOBODY),
        ("cloud", "--insecure", "--layers", "decoder.9:"),
        ("cloud", "--insecure", "--layers", ":decoder.2"),
        ("cloud", "--insecure", "--layers", "decoder.1:decoder.2", "--next", "here"),
        ("cloud", "--insecure", "--next", NOBODY),
        ("cloud", "--insecure", "--wires", "fp32,fp8"),
        ("edge", "--insecure", "--provider", "abacus", "--listen", "127.0.0.1:0"),
        ("edge", "--listen", "here"),
        ("edge", "--insecure", "--fresh", "--memory", "5", "--listen", "127.0.0.1:0"),
        ("edge", "--listen", "0.0.0.0:0"),
        ("edge", "--insecure", "--worker", "here", "--listen", "127.0.0.1:0"),
        ("edge", "--insecure", "--worker", "192.0.2.1:1", "--listen", "127.0.0.1:0"),
        ("ask", "image.png", "What?", "--worker", "192.0.2.1:1"),
        ("edge", "--listen", "host.invalid:0", "--insecure"),
        ("calibrate", "--cards", "0"),
        ("calibrate", "--cards", "-3"),
        ("calibrate", "--risk", "0"),
        ("calibrate", "--confidence", "1"),
        ("calibrate", "--timeout", "0"),
        ("demo", "--timeout", "601"),
        ("calibrate", "--data", "/nowhere/questions.jsonl"),
        ("demo", "--images", "0"),
        ("demo", "--seed", "-1"),
        ("export", "/nowhere", "--out", "/nowhere/bundle"),
        ("export", "/nowhere", "--out", "/nowhere/bundle", "--role", "magic"),
        ("export", "/nowhere", "--out", "/nowhere/bundle", "--role", "target"),
    ],
    ids=" ".join,
)
def test_a_command_that_cannot_begin(run: Run, arguments: tuple[str, ...]) -> None:
    run(*arguments).failed(InputError.exit_code)


@pytest.mark.parametrize("command", ["cloud", "edge"])
def test_an_address_that_is_taken(run: Run, command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert address in run(command, "--insecure", "--listen", address).failed(2)


def test_a_worker_that_cannot_begin_says_so_before_torch_is_imported(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Which takes ten seconds; here it would be missed."""
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "needs torch" in run("cloud", "--insecure", "--listen", "127.0.0.1:0").err
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        for options in (
            ("--listen", taken),
            ("--metrics", taken),
            ("--listen", "192.0.2.1:1", "--tls-cert", "c", "--tls-key", "k", "--tokens", "t"),
            ("--layers", "decoder.9:"),
            ("--threads", "0"),
            ("--context", "1"),
            ("--dtype", "fp8"),
            ("--wires", "fp8"),
            ("--device", "abacus"),
            ("--device", "cuda:1", "--tensor-parallel", "2"),
            ("--drain", "-1"),
            ("--layers", ":decoder.1", "--next", "here"),
        ):
            secured = () if "--tokens" in options else ("--insecure",)
            listen = () if "--listen" in options else ("--listen", "127.0.0.1:0")
            told = run("cloud", *secured, *listen, *options).failed(InputError.exit_code)
            assert "torch" not in told, options
    told = run("cloud", "--insecure", "--listen", "127.0.0.1:0", "--bundle", tmp_path / "none").failed(3)
    assert str(tmp_path / "none") in told


@pytest.mark.parametrize("lines", ["", "\n\n", "{}", "not json", '{"image": "none.png", "question": "What?"}'])
def test_questions_to_calibrate_on_that_do_not_read(run: Run, bundle: Path, tmp_path: Path, lines: str) -> None:
    data = tmp_path / "questions.jsonl"
    data.write_text(lines)
    run("calibrate", "--bundle", bundle, "--data", data, "--worker", NOBODY).failed(2)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("none.png", "there is no file 'none.png'"),
        ("a\0b", "there is no file"),
        (".", "there is no file"),
        ("x" * 300, "File name too long"),
        ("noise.png", "not a readable image"),
        ("long.png", "32 MiB"),
    ],
)
def test_a_question_to_calibrate_on_is_named_by_its_line(
    run: Run, bundle: Path, tmp_path: Path, image: str, words: str
) -> None:
    data = tmp_path / "questions.jsonl"
    data.write_bytes(b"\n" + msgspec.json.encode({"image": image, "question": "What?"}) + b"\n")
    (tmp_path / "noise.png").write_bytes(b"Dear Sir or Madam")
    with (tmp_path / "long.png").open("wb") as file:
        file.truncate(1 << 30)
    line = run("calibrate", "--bundle", bundle, "--price-cards", "0", "--data", data, "--worker", NOBODY).failed(2)
    assert line.startswith(f"cutline: {data} line 2: ")
    assert words in line


def test_a_file_of_questions_without_an_end(run: Run, bundle: Path) -> None:
    told = run("calibrate", "--bundle", bundle, "--price-cards", "0", "--data", "/dev/zero", "--worker", NOBODY)
    assert "/dev/zero line 1: it is longer than 1 MiB" in told.failed(2)


def test_no_agent_at_the_url(run: Run, card: Path) -> None:
    run("ask", card, "What?", "--agent", f"http://{NOBODY}").failed(WorkerUnavailable.exit_code)


def test_no_worker_at_the_address(run: Run, card: Path) -> None:
    asked = ("ask", card, "What?", "--worker", NOBODY, "--worker", "127.0.0.1:2")
    assert "127.0.0.1:" in run(*asked, "--mode", "cloud").failed(WorkerUnavailable.exit_code)
    alone = run(*asked, "--mode", "draft")
    assert alone.code == 0
    assert f"passed over {NOBODY}, 127.0.0.1:2 went on" in alone.err
    assert "this device alone from token 0 on: unverified" in alone.err


def test_what_a_worker_wrote_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    why = "it failed [/x] [red]oops"
    lost = Lost(worker="it", why=why, position=1, silent_ms=0.0, next=None)
    answer = msgspec.convert(ANSWER | {"lost": [lost], "worker": "[/there]:1"}, Answer, from_attributes=True)
    _tell(answer, verbose=True)
    out = capsys.readouterr().err
    assert why in out
    assert "[/there]:1" in out


def test_no_next_worker_at_the_address(run: Run) -> None:
    ran = run("cloud", "--insecure", "--listen", "127.0.0.1:0", "--layers", ":head", "--next", NOBODY)
    assert NOBODY in ran.failed(4)


def test_no_worker_named(run: Run, card: Path) -> None:
    for mode in ("cloud", "draft"):
        assert "--worker" in run("ask", card, "What?", "--mode", mode).failed(2)


def test_a_worker_that_never_answers(run: Run, card: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        line = run("ask", card, "What?", "--mode", "cloud", "--worker", address, "--timeout", "0.3").failed(4)
        assert "nothing was heard" in line


def test_exit_codes_are_those_documented() -> None:
    codes: dict[type[CutlineError], int] = {
        CutlineError: 1,
        InputError: 2,
        ImageError: 2,
        PromptError: 2,
        BundleError: 3,
        WorkerUnavailable: 4,
        ModelMismatch: 5,
        WorkerBusy: 6,
        WorkerFailed: 7,
        WorkerForgot: 10,
        AccessDenied: 9,
    }
    assert {kind: kind.exit_code for kind in codes} == codes


def test_the_message_of_any_error_is_one_line(run: Run, card: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise WorkerFailed("first\nsecond\r\n\tthird")

    monkeypatch.setattr("cutline.edge.agent.Agent.__init__", fail)
    assert run("ask", card, "What?").failed(7) == "cutline: first second third\n"
