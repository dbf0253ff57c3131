"""`cutline keys`, and what it makes at work: a worker and an agent over TLS, each of whom knows the other."""

from __future__ import annotations

import hashlib
import json
import os
import ssl
import stat
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Run = Callable[..., Any]
Start = Callable[..., Any]
FREE = "127.0.0.1:0"


def certificate(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


def test_init_makes_what_a_fleet_needs(run: Run, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    ran = run("keys", "init", keys, "--host", "worker.example", "--host", "2001:db8::1", "--device", "camera1")
    assert ran.code == 0
    for words in ("--tls-cert", "--tls-key", "--client-ca", "--revoked", "--ca", "--cert"):
        assert words in ran.out
    files = sorted(file.name for file in keys.iterdir())
    pairs = ["ca.crt", "ca.key", "camera1.crt", "camera1.key", "server.crt", "server.key"]
    assert files == sorted([*pairs, "revoked.toml"])
    assert tomllib.loads((keys / "revoked.toml").read_text()) == {}
    assert {stat.S_IMODE(file.stat().st_mode) for file in keys.iterdir()} == {0o600}
    ca, server, device = (certificate(keys / f"{name}.crt") for name in ("ca", "server", "camera1"))
    now = datetime.now(UTC)
    for one, days in ((ca, 5 * 365), (server, 397), (device, 397)):
        assert isinstance(one.public_key(), ec.EllipticCurvePublicKey)
        assert one.public_key().curve.name == "secp256r1"  # type: ignore[union-attr]
        assert abs(one.not_valid_after_utc - now - timedelta(days=days)) < timedelta(minutes=5)
        assert one.not_valid_before_utc < now
        one.verify_directly_issued_by(ca)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"worker.example", "localhost"}
    assert {str(one) for one in names.get_values_for_type(x509.IPAddress)} == {"2001:db8::1", "127.0.0.1", "::1"}
    assert device.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "camera1"
    uses = [one.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value for one in (server, device)]
    assert [list(use) for use in uses] == [[ExtendedKeyUsageOID.SERVER_AUTH], [ExtendedKeyUsageOID.CLIENT_AUTH]]

    before = {file: file.read_bytes() for file in keys.iterdir()}
    assert "written over" in run("keys", "init", keys).failed(2)
    assert "written over" in run("keys", "add-device", keys, "camera1").failed(2)
    told = json.loads(run("keys", "add-device", keys, "camera2", "--days", "3", "--json").out)
    made = certificate(Path(told["devices"]["camera2"]["certificate"]))
    made.verify_directly_issued_by(ca)
    assert abs(made.not_valid_after_utc - now - timedelta(days=3)) < timedelta(minutes=5)
    told = json.loads(run("keys", "add-server", keys, "worker2", "--host", "worker2.example", "--json").out)
    certificate(Path(told["server"]["certificate"])).verify_directly_issued_by(ca)
    assert before == {file: file.read_bytes() for file in before}


@pytest.mark.parametrize(
    "arguments",
    [
        ("init", "{folder}", "--host", "a:1"),
        ("init", "{folder}", "--host", "wörker"),
        ("init", "{folder}", "--device", "a/b"),
        ("init", "{folder}", "--device", "ca"),
        ("init", "{folder}", "--device", "server"),
        ("init", "{folder}", "--device", "twice", "--device", "twice"),
        ("init", "{folder}", "--days", "0"),
        ("init", "/proc/none"),
        ("add-device", "{folder}", "camera"),
        ("token", "{folder}/tokens.toml", "a b"),
        ("token", "/proc/none/tokens.toml", "a"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_made_leaves_nothing_behind(run: Run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    folder = tmp_path / "keys"
    run("keys", *(one.format(folder=folder) for one in arguments)).failed(2)
    assert not folder.exists()


def test_a_token_is_printed_once_and_its_hash_kept(run: Run, tmp_path: Path) -> None:
    tokens, out = tmp_path / "tokens.toml", tmp_path / "token"
    printed = run("keys", "token", tokens, "warehouse").out.split()[0]
    assert run("keys", "token", tokens, "harbour", "--out", out).code == 0
    assert "written over" in run("keys", "token", tokens, "harbour", "--out", out).failed(2)
    written = out.read_text().strip()
    assert stat.S_IMODE(out.stat().st_mode) == stat.S_IMODE(tokens.stat().st_mode) == 0o600
    assert len(printed) == len(written) == 43  # 32 bytes
    assert tomllib.loads(tokens.read_text()) == {
        "token": [
            {"tenant": tenant, "sha256": hashlib.sha256(token.encode()).hexdigest()}
            for tenant, token in (("warehouse", printed), ("harbour", written))
        ]
    }
    for words in ("--tokens", "--api-tokens", "--token-file", "Authorization: Bearer"):
        assert words in run("keys", "token", tokens, "third").out
    late = tmp_path / "late"
    assert "cannot write" in run("keys", "token", tmp_path / "none" / "tokens.toml", "third", "--out", late).failed(2)
    assert not late.exists(), "it would let nobody in"
    tokens.write_text("no tokens file")
    run("keys", "token", tokens, "third").failed(2)
    assert tokens.read_text() == "no tokens file"


def test_a_worker_and_an_agent_that_know_each_other(run: Run, start: Start, card: Path, tmp_path: Path) -> None:
    keys, tokens, token = tmp_path / "keys", tmp_path / "tokens.toml", tmp_path / "token"
    run("keys", "init", keys, "--device", "camera1")
    run("keys", "token", tokens, "operator", "--out", token)
    served = ("--tls-cert", keys / "server.crt", "--tls-key", keys / "server.key")
    shown = ("--ca", keys / "ca.crt", "--cert", keys / "camera1.crt", "--key", keys / "camera1.key")
    audit = tmp_path / "audit"
    worker = start(
        "cloud", "--listen", FREE, *served, "--client-ca", keys / "ca.crt", "--threads", "1", "--log", "json",
        "--audit", audit,
    )  # fmt: skip
    address = worker.address()
    asked = ("ask", card, "Describe the card.", "--mode", "cloud", "--worker", address)
    answer = json.loads(run(*asked, *shown, "--json").out)
    assert answer["tokens"]
    assert "--cert" in run(*asked, "--ca", keys / "ca.crt").failed(4)
    assert "TLS" in run(*asked).failed(4)
    agent = start(
        "edge", "--listen", FREE, *served, "--api-tokens", tokens, "--worker", address, *shown, "--threads", "1"
    )
    url = f"https://{agent.address()}"
    context = ssl.create_default_context(cafile=keys / "ca.crt")
    with httpx.Client(base_url=url, verify=context, trust_env=False, timeout=30) as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/v1/models").status_code == 401
        bearer = {"authorization": f"Bearer {token.read_text().strip()}"}
        assert client.get("/v1/models", headers=bearer).status_code == 200
        assert client.get("/v1/models", auth=("anyone", token.read_text().strip())).status_code == 200
    asked_there = ("ask", card, "Describe the card.", "--agent", url, "--mode", "cloud")
    told = json.loads(run(*asked_there, "--ca", keys / "ca.crt", "--token-file", token, "--json").out)
    assert [one["id"] for one in told["tokens"]] == [one["id"] for one in answer["tokens"]]
    assert "token" in run(*asked_there, "--ca", keys / "ca.crt").failed(9)
    assert "vouches" in run(*asked_there, "--token-file", token).failed(4)
    run("ask", card, "What?", "--agent", "http://192.0.2.1:1", "--token-file", token).failed(2)
    worker.signal(15)
    ran = worker.finish()
    assert ran.code == 0
    said = [json.loads(line) for line in ran.err.splitlines()]
    session, another = [one for one in said if one["event"] == "session"]
    assert another["tenant"] == "camera1/operator", "whose token it was goes along"
    assert [one["event"] for one in said if "session" in one] == ["session"] * 2, "one line each"
    assert (session["tenant"], session["status"], session["tokens"]) == ("camera1", "OK", len(answer["tokens"]))
    entry, _ = [json.loads(line) for line in audit.read_text().splitlines()]
    assert (entry["tenant"], entry["outcome"], entry["session"]) == ("camera1", "OK", session["session"])
    assert stat.S_IMODE(audit.stat().st_mode) == 0o600


def test_a_certificate_is_revoked_by_what_was_signed_of_it(run: Run, tmp_path: Path) -> None:
    keys, other = tmp_path / "keys", tmp_path / "other"
    run("keys", "init", keys, "--device", "camera1", "--device", "camera2")
    run("keys", "init", other, "--device", "camera3")
    told = json.loads(run("keys", "revoke", keys, "camera1", "--json").out)
    assert told == {"revoked": "camera1", "list": str(keys / "revoked.toml")}
    (keys / "camera2.crt").rename(keys / "camera2.old.crt")
    run("keys", "revoke", keys, "camera1")  # once more changes nothing
    assert "camera2 is shut out" in run("keys", "revoke", keys, "camera2.old").out
    assert tomllib.loads((keys / "revoked.toml").read_text()) == {
        "revoked": [
            {"name": name, "sha256": hashlib.sha256(certificate(keys / file).tbs_certificate_bytes).hexdigest()}
            for name, file in (("camera1", "camera1.crt"), ("camera2", "camera2.old.crt"))
        ]
    }
    before = (keys / "revoked.toml").read_text()
    (keys / "camera3.crt").write_bytes((other / "camera3.crt").read_bytes())
    assert "is no certificate that the authority" in run("keys", "revoke", keys, "camera3").failed(2)
    assert "is no certificate that the authority" in run("keys", "revoke", keys, "ca").failed(2)
    assert "not a device's" in run("keys", "revoke", keys, "server").failed(2)
    for name in ("camera4", "../keys/camera1"):
        run("keys", "revoke", keys, name).failed(2)
    (keys / "revoked.toml").write_text("[[")
    run("keys", "revoke", keys, "camera1").failed(2)
    (keys / "revoked.toml").unlink()
    run("keys", "revoke", keys, "camera2.old")
    assert "camera2" in (keys / "revoked.toml").read_text()
    assert len(before) > len((keys / "revoked.toml").read_text())


def test_a_device_that_is_revoked_is_shut_out_at_once(run: Run, start: Start, card: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    run("keys", "init", keys, "--device", "camera1", "--device", "camera2")
    served = ("--tls-cert", keys / "server.crt", "--tls-key", keys / "server.key", "--client-ca", keys / "ca.crt")
    audit = tmp_path / "audit"
    worker = start(
        "cloud", "--listen", FREE, *served, "--revoked", keys / "revoked.toml", "--threads", "1", "--audit", audit
    )
    asked = (
        "ask",
        card,
        "Describe the card.",
        "--mode",
        "cloud",
        "--worker",
        worker.address(),
        "--ca",
        keys / "ca.crt",
    )
    one, two = (("--cert", keys / f"{name}.crt", "--key", keys / f"{name}.key") for name in ("camera1", "camera2"))
    assert run(*asked, *one).code == 0
    run("keys", "revoke", keys, "camera1")
    assert "camera1 was revoked" in run(*asked, *one).failed(9)
    assert run(*asked, *two).code == 0
    worker.signal(15)
    assert worker.finish().code == 0
    assert "certificate of camera1 was revoked" in audit.read_text()
    assert "--client-ca" in run("cloud", "--listen", FREE, *served[:4], "--revoked", keys / "revoked.toml").failed(2)


def test_an_agent_refuses_limits_that_it_does_not_hold(run: Run, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    run("keys", "token", tokens, "one")
    with tokens.open("a") as file:
        file.write("[tenant.one]\nupload_mb_per_second = 512.0\n")
    told = run("edge", "--listen", FREE, "--insecure", "--api-tokens", tokens).failed(2)
    assert "upload_mb_per_second of tenant one" in told


def test_options_are_named_that_a_command_has(run: Run) -> None:
    told = run("edge", "--listen", FREE, "--tls-cert", "x").failed(2)
    assert "--tls-key" in told
    assert "--client-ca" not in told
    assert "--tls-cert" in run("cloud", "--listen", FREE, "--client-ca", "x").failed(2)


def test_a_folder_whose_name_is_no_utf8_is_told_as_text(run: Run, tmp_path: Path) -> None:
    keys = tmp_path / os.fsdecode(b"caf\xe9")
    shown = f"{tmp_path}/caf\\xe9"
    tokens, secret = keys / "tokens.toml", keys / "a.token"
    told = [
        json.loads(run(*command, "--json").out)
        for command in (
            ("keys", "init", keys, "--device", "camera1"),
            ("keys", "add-server", keys, "worker2"),
            ("keys", "add-device", keys, "camera2"),
            ("keys", "revoke", keys, "camera2"),
            ("keys", "token", tokens, "warehouse", "--out", secret),
        )
    ]
    assert told[0]["ca"] == told[1]["ca"] == told[2]["ca"] == f"{shown}/ca.crt"
    assert told[0]["devices"]["camera1"] == {"certificate": f"{shown}/camera1.crt", "key": f"{shown}/camera1.key"}
    assert (told[3]["list"], told[4]["tokens"]) == (f"{shown}/revoked.toml", f"{shown}/tokens.toml")
    assert f"--token-file {shown}/b.token" in run("keys", "token", tokens, "depot", "--out", keys / "b.token").out


@pytest.mark.parametrize("command", [("add-device", "{keys}"), ("add-server", "{keys}"), ("token", "{keys}/t.toml")])
def test_a_name_that_is_no_utf8_is_refused(run: Run, tmp_path: Path, command: tuple[str, str]) -> None:
    run("keys", "init", tmp_path / "keys")
    name, where = command
    said = run("keys", name, where.format(keys=tmp_path / "keys"), os.fsdecode(b"caf\xe9")).failed(2)
    assert said.count("\n") == 1
    assert sorted(file.name for file in (tmp_path / "keys").iterdir()) == [
        "ca.crt", "ca.key", "revoked.toml", "server.crt", "server.key",
    ]  # fmt: skip
