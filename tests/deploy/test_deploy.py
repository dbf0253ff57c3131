"""What is in deploy/ is held to the schemas and rules of what reads it. None of it is run here."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate import validate
from typer.main import get_command
from typer.testing import CliRunner

from cutline.cli.main import app
from cutline.cli.process.signals import INTERRUPTED

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = "1.35"

UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
IMAGES = sorted((DEPLOY / "docker").glob("*.Dockerfile"))
MANIFESTS = sorted(set((DEPLOY / "kubernetes").glob("*.yaml")) - {DEPLOY / "kubernetes" / "kustomization.yaml"})

# Each must stand in every unit, so that nobody loosens one in passing.
SANDBOX = {
    "CapabilityBoundingSet": "",
    "DynamicUser": "yes",
    "LockPersonality": "yes",
    "NoNewPrivileges": "yes",
    "PrivateDevices": "yes",
    "PrivateTmp": "yes",
    "ProtectHome": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectSystem": "strict",
    "Restart": "on-failure",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
    "RestrictNamespaces": "yes",
    "RestrictSUIDSGID": "yes",
    "SystemCallArchitectures": "native",
    "UMask": "0077",
}
ANALYZE = shutil.which("systemd-analyze")
EXPOSURE = 2.0  # of 10, by `systemd-analyze security`


def settings(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        if line and line[0] not in "#[;":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def rooms() -> set[str]:
    """The folders that the package is made of."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    return set(wheel["only-include"])


def reached(command: list[str]) -> bool:
    """Whether a command listens where others come in, and asks them who they are."""
    given = dict(zip(command[::2], command[1::2], strict=True))
    return (
        given["--listen"].startswith("0.0.0.0:")
        and "--tls-cert" in given
        and bool({"--tokens", "--api-tokens"} & given.keys())
    )


def check_options(command: list[str]) -> None:
    """That an installed `cutline` would know what it is started with."""
    program, *arguments = command
    assert program.rpartition("/")[2] == "cutline"
    found: Any = get_command(app)
    while hasattr(found, "commands"):
        found = found.commands[arguments.pop(0)]
    used = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
    known = {option for parameter in found.params for option in parameter.opts}
    assert used <= known, f"cutline {found.name} has no {used - known}"


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_stay_in_their_sandbox(unit: Path) -> None:
    found = settings(unit)
    assert {name: found.get(name, [None])[-1] for name in SANDBOX} == SANDBOX
    assert found["SystemCallFilter"][:2] == ["@system-service", "~@privileged @resources"]
    assert found["MemoryMax"][0].endswith("%")
    assert found["StateDirectory"] == [unit.stem]
    assert f"CUTLINE_HOME=%S/{unit.stem}" in found["Environment"][0].split(), "where models are found by name"
    (start,) = found["ExecStart"]
    check_options(shlex.split(start))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_find_their_settings_which_the_command_takes(unit: Path) -> None:
    """And stop no earlier than sessions have drained; keys and tokens are where systemd puts them."""
    found, name = settings(unit), unit.stem.removeprefix("cutline-")
    file = unit.with_name(f"{name}.toml")
    assert found["ExecStart"][0].endswith(f" --config /etc/cutline/{file.name}")
    assert found["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    shown = CliRunner().invoke(app, ["config", "show", name, "--config", str(file), "--json"])
    assert shown.exit_code == 0, shown.output
    given = {key: one["value"] for key, one in json.loads(shown.stdout).items() if one["source"] == str(file)}
    assert int(found["TimeoutStopSec"][0]) > given.get("drain", 0) + 10
    credentials = {f"/run/credentials/{unit.name}/{one.partition(':')[0]}" for one in found["LoadCredential"]}
    assert credentials == {value for value in given.values() if str(value).startswith("/run/")}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_start_again_what_failed_and_take_an_early_stop_for_none(unit: Path) -> None:
    found = settings(unit)
    assert found["Restart"] == ["on-failure"]
    assert "RestartPreventExitStatus" not in found
    assert found["SuccessExitStatus"] == [str(INTERRUPTED)], "so that a cluster without Ray's controller is a failure"


def test_a_cluster_ends_its_workers_itself_for_ray_would_kill_them_when_it_is_told() -> None:
    found = settings(DEPLOY / "systemd" / "cutline-cluster.service")
    assert (found["KillMode"], found["KillSignal"]) == (["mixed"], ["SIGTERM"])


def test_what_the_units_read_is_put_there_by_the_documented_commands() -> None:
    blocks = re.findall(r"```\n(.*?)```", (ROOT / "docs/how-to/deploy.md").read_text(), re.DOTALL)
    commands = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if "sudo" in line]
    put = set[str]()
    for words in commands:
        if "install" in words and "-t" in words:
            folder = words[words.index("-t") + 1]
            put |= {f"{folder}/{Path(word).name}" for word in words if word.startswith(("keys/", "deploy/"))}
    for unit in UNITS:
        found = settings(unit)
        read = {one.partition(":")[2] for one in found["LoadCredential"]} | {found["ExecStart"][0].split()[-1]}
        assert read <= put, f"{unit.name}: nobody puts {read - put} there"


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_takes_the_units(unit: Path, tmp_path: Path) -> None:
    there = tmp_path / unit.name
    there.write_text(unit.read_text().replace("/opt/cutline/bin/cutline", "/bin/true"))
    verified = subprocess.run([str(ANALYZE), "verify", there], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    told = subprocess.run(
        [str(ANALYZE), "security", "--offline=yes", "--no-pager", there],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    exposure = re.search(r"exposure level for .*: ([\d.]+)", told)
    assert exposure is not None
    assert float(exposure[1]) <= EXPOSURE


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.stem)
def test_images_keep_the_rules(image: Path) -> None:
    text = re.sub(r"\\\n", " ", image.read_text())
    lines = [line.partition(" ") for line in text.splitlines() if line and not line.startswith("#")]
    last = max(index for index, line in enumerate(lines) if line[0] == "FROM")
    final = [(name, value) for name, _, value in lines[last:]]
    defaults = dict(value.split("=", 1) for name, _, value in lines if name == "ARG")
    for name, _, value in lines:
        if name == "FROM":
            base = value.split()[0].replace("${PYTHON}", defaults["PYTHON"])
            assert re.fullmatch(r"python:3\.\d+-slim-\w+", base), "a tag that is pinned"
        assert name in {
            "ARG",
            "CMD",
            "COPY",
            "ENTRYPOINT",
            "ENV",
            "EXPOSE",
            "FROM",
            "HEALTHCHECK",
            "RUN",
            "STOPSIGNAL",
            "USER",
            "WORKDIR",
        }
        assert "sudo" not in value
        assert "curl" not in value
        if "pip install" in value:
            assert "--no-cache-dir" in value
    assert not any(name == "RUN" for name, _ in final), "what is built stays in the first stage"
    values = dict(final)
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", values["USER"]), (
        "by number: an orchestrator sees that it is not root"
    )
    assert values["STOPSIGNAL"] == "SIGTERM"
    assert len(json.loads(values["HEALTHCHECK"].partition("CMD ")[2])) == 3
    check_options([*json.loads(values["ENTRYPOINT"]), *json.loads(values["CMD"])])
    assert reached(json.loads(values["CMD"])), "a container's own loopback is reached by nobody"
    ignored = image.with_name(f"{image.name}.dockerignore").read_text().splitlines()
    assert "**" in ignored
    for kept in (line[1:] for line in ignored if line.startswith("!")):
        assert (ROOT / kept).exists()
    assert rooms() <= {line[1:] for line in ignored}, "the package needs every room"


def test_the_image_of_a_device_has_no_torch() -> None:
    text = (DEPLOY / "docker" / "edge.Dockerfile").read_text()
    assert "[cloud]" not in text
    assert "pip install --no-cache-dir ." in text


def documents() -> list[dict[str, Any]]:
    return [one for file in MANIFESTS for one in yaml.safe_load_all(file.read_text())]


@pytest.mark.parametrize("one", documents(), ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_kubernetes_takes_the_manifests(one: dict[str, Any]) -> None:
    validate(one, KUBERNETES, strict=True)


def test_a_misspelt_manifest_would_be_found() -> None:
    one = next(one for one in documents() if one["kind"] == "Deployment")
    one["spec"]["template"]["spec"]["containers"][0]["readinessprobe"] = {}
    with pytest.raises(Exception, match="readinessprobe"):
        validate(one, KUBERNETES, strict=True)


def test_the_manifests_fit_together() -> None:
    by_kind = {one["kind"]: one for one in documents()}
    deployment = by_kind["Deployment"]["spec"]
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert by_kind["Service"]["spec"]["selector"] == labels
    assert by_kind["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert by_kind["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert by_kind["Service"]["spec"]["ports"][0]["targetPort"] in ports
    assert by_kind["NetworkPolicy"]["spec"]["ingress"][0]["ports"][0]["port"] in ports

    check_options(["cutline", "cloud", *container["args"]])
    arguments = dict(argument.split("=", 1) for argument in container["args"])
    assert arguments["--listen"].endswith(f":{ports['grpc']}")
    assert int(arguments["--drain"]) + 20 <= pod["terminationGracePeriodSeconds"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}
    kustomization = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())
    (secret,) = kustomization["secretGenerator"]
    assert next(one for one in pod["volumes"] if one["name"] == "keys")["secret"]["secretName"] == secret["name"]
    given = {Path(file).name for file in secret["files"]}
    assert {Path(arguments[name]).name for name in ("--tls-cert", "--tls-key", "--tokens")} <= given
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        check_options(container[probe]["exec"]["command"])
    assert {file.name for file in MANIFESTS} == set(kustomization["resources"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == container["resources"]["requests"]["nvidia.com/gpu"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["securityContext"]["runAsNonRoot"] is True
