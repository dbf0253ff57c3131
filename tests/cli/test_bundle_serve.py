"""`cutline bundle serve`, and what it gives: over HTTPS to who has a token, in plain text on this machine alone."""

from __future__ import annotations

import json
import signal
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from cutline.demo.bundles import DRAFTER, TARGET
from cutline.models.bundle import MANIFEST, Bundle
from cutline.models.hub.library import bundle_path
from cutline.protos.channel.token_file import token_entry

Run = Callable[..., Any]
Start = Callable[..., Any]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CUTLINE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_bundle_goes_from_one_machine_to_another(
    run: Run, start: Start, card: Path, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start("bundle", "serve", DRAFTER, TARGET, "--listen", "127.0.0.1:0", "--insecure")
    url = f"http://{server.address()}"
    commands = [server.line().split() for _ in range(2)]
    assert commands == [["cutline", "pull", f"{url}/{path.name}"] for path in (DRAFTER, TARGET)]
    listed = httpx.get(url).json()["bundles"]
    assert [(one["role"], one["identity"]) for one in listed] == [
        (role, Bundle.open(path).manifest.identity) for role, path in (("drafter", DRAFTER), ("target", TARGET))
    ]
    ran = run(*commands[0][1:], "--name", "digits", "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert (told["name"], told["kind"], told["version"]) == ("digits", "bundle", listed[0]["identity"])
    assert Path(told["path"]) == bundle_path("digits", "drafter")
    assert files(bundle_path("digits", "drafter")) == files(DRAFTER)
    assert told["files"] == Bundle.open(DRAFTER).manifest.files
    ran = run(*commands[1][1:], "--name", "digits", "--part", "device")
    assert (ran.code, ran.out) == (0, f"{bundle_path('digits', 'target')}\n")
    assert run("ask", card, "Read the digits.", "--model", "digits", "--mode", "edge").code == 0
    server.signal(signal.SIGTERM)
    assert server.finish().code == 0
    assert "does not answer" in run(*commands[0][1:], "--name", "other").failed(4)


def test_nothing_but_the_files_is_given(start: Start, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    server = start("bundle", "serve", DRAFTER, "--listen", "127.0.0.1:0", "--insecure")
    address = server.address()
    name = DRAFTER.name
    content = (DRAFTER / MANIFEST).read_bytes()
    with httpx.Client(base_url=f"http://{address}") as client:
        for path in (f"{name}/../../secret", f"{name}/%2e%2e/%2e%2e/secret", f"{name}/", name, f"{name}//{MANIFEST}",
                     "/etc/passwd", "%2fetc%2fpasswd", f"{name}/.", "x" * 3000, f"{name}/{MANIFEST}%00"):  # fmt: skip
            assert client.get(f"/{path}").status_code in (400, 404), path
        assert client.post(f"/{name}/{MANIFEST}").status_code == 405
        assert client.get(f"/{name}/{MANIFEST}").content == content
        for asked, status, got in (
            ("bytes=10-", 206, content[10:]),
            ("bytes=10-19", 206, content[10:20]),
            ("bytes=0-1,5-6", 200, content),
            ("bytes=" + ",".join(["0-0"] * 2000), 200, content),
            ("lines=1-2", 200, content),
            (f"bytes={len(content)}-", 416, None),
        ):
            response = client.get(f"/{name}/{MANIFEST}", headers={"range": asked})
            assert response.status_code == status, asked
            assert got is None or response.content == got
        assert client.get("/", headers={"host": "evil.example"}).status_code == 421, "no page of a browser asks it"


@pytest.mark.threat("doors")
def test_over_https_it_is_for_who_has_a_token(run: Run, start: Start, tmp_path: Path) -> None:
    keys, tokens, token = tmp_path / "keys", tmp_path / "tokens.toml", tmp_path / "token"
    assert run("keys", "init", keys, "--host", "127.0.0.1").code == 0
    tokens.write_text(token_entry("porch", "one"))
    token.write_text("one")
    token.chmod(0o600)
    shown = ("--tls-cert", keys / "server.crt", "--tls-key", keys / "server.key", "--tokens", tokens)
    server = start("bundle", "serve", DRAFTER, "--listen", "127.0.0.1:0", *shown)
    server.address()
    url = server.line().split()[-1]
    assert url.startswith("https://127.0.0.1:")
    trusted = ssl.create_default_context(cafile=keys / "ca.crt")
    for path in ("", "/", f"/{MANIFEST}", "/none", "/../x"):
        for headers in ({}, {"authorization": "Bearer two"}, {"authorization": "one"}, {"cookie": "one"}):
            assert httpx.get(url + path, headers=headers, verify=trusted).status_code == 401
    assert "vouches for it; give --ca" in run("pull", url).failed(4)
    assert "only to who may have it" in run("pull", url, "--ca", keys / "ca.crt").failed(9)
    ran = run("pull", url, "--ca", keys / "ca.crt", "--token-file", token)
    assert ran.code == 0, ran.err
    assert files(bundle_path(DRAFTER.name, "drafter")) == files(DRAFTER)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (("--listen", "127.0.0.1:0"), "--insecure to serve"),
        (("--listen", "0.0.0.0:0", "--insecure"), "own addresses"),
        (("--listen", "0.0.0.0:0"), "can be reached from outside"),
        (("--listen", "127.0.0.1:0", "--insecure", DRAFTER), "two of these bundles"),
    ],
)
def test_what_is_not_served(run: Run, given: tuple[str, ...], why: str) -> None:
    assert why in run("bundle", "serve", DRAFTER, *given).failed(2)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://10.1.2.3/digits", "in plain text"),
        ("ftp://127.0.0.1/digits", "no URL of a bundle"),
        ("http://user:password@127.0.0.1/digits", "no URL of a bundle"),
        ("http://", "no URL of a bundle"),
        ("https://:1/digits", "no URL of a bundle"),
        ("http://127.0.0.1:9/", "does not answer"),
    ],
)
def test_what_is_not_pulled(run: Run, url: str, why: str) -> None:
    assert why in run("pull", url).failed(4 if "answer" in why else 2)


def test_options_of_bundles_are_none_of_weights(run: Run) -> None:
    assert "for the URL of a bundle" in run("pull", "maker/model", "--name", "mine").failed(2)
