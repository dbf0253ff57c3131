"""Options that several commands share, in groups that belong together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

Bundle = Annotated[
    Path | None,
    typer.Option(
        "--bundle",
        "--model",
        help="The bundle's folder, or its name in `cutline list`; without it, the demo's.",
        show_default=False,
    ),
]
Worker = Annotated[str | None, "HOST:PORT of a worker."]
Log = Annotated[str, "How the log is written to stderr: text or json, a line an event."]
Listen = Annotated[str, "HOST:PORT to listen at; port 0 takes any free one."]
Target = Annotated[
    Path | None,
    "The target's bundle or its name, for cuts; without it that of a drafter that is given by name, and the demo's for "
    "the demo's.",
]
Threads = Annotated[int | None, "Threads of the model; without it, the cores this process has."]
Provider = Annotated[str | None, "ONNX Runtime's execution provider: cpu, cuda, coreml, ...; without it cpu."]
JournalKeyFile = Annotated[
    Path | None, "File of 64 hexadecimal digits, the key that seals the journal; needs Cutline's extra `keys`."
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")]
Insecure = Annotated[bool, "Serve whoever asks, in plain text: on this machine's own addresses alone."]


class WorkerKeys(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is known by, and what it knows the one by who asks it."""

    ca: Annotated[Path | None, "Certificates in PEM of who vouches for the worker, to reach it by TLS."] = None
    cert: Annotated[Path | None, "This device's own certificate, for a worker that asks for one."] = None
    key: Annotated[Path | None, "Its private key."] = None
    token_file: Annotated[Path | None, "File that holds the token for the worker; without it, CUTLINE_TOKEN."] = None


class ServerTls(msgspec.Struct, frozen=True, kw_only=True):
    """What a server is known by."""

    tls_cert: Annotated[Path | None, "Certificate to be known by, in PEM, of `cutline keys init`."] = None
    tls_key: Annotated[Path | None, "Its private key."] = None


class Admission(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker, or a directory of workers, is known by, and whom it serves."""

    tls: ServerTls = ServerTls()
    client_ca: Annotated[Path | None, "Certificates in PEM of who vouches for callers: each must show one."] = None
    revoked: Annotated[Path | None, "TOML file of `cutline keys revoke`: certificates that are not taken any more."] = (
        None
    )
    tokens: Annotated[Path | None, "TOML file of who may come with which token, and of their limits."] = None
    insecure: Insecure = False


class Profiles(msgspec.Struct, frozen=True, kw_only=True):
    """What mode auto is planned with."""

    edge_profile: Annotated[
        str | None, "Profile of this device, to plan mode auto with: a name, or a TOML file of `cutline profile`."
    ] = None
    cloud_profile: Annotated[str | None, "Profile of the worker's machine, likewise."] = None
    link: Annotated[str | None, "Name of a link profile, or a TOML file: what the link is taken for at first."] = None

    @property
    def given(self) -> bool:
        """Whether there is any."""
        return self != Profiles()


class UpstreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The server that answers in place of a worker."""

    upstream: Annotated[
        str | None,
        "URL of an OpenAI-compatible server that answers in place of a worker, as https://api.example.com/v1; its "
        "key is taken from CUTLINE_UPSTREAM_KEY.",
    ] = None
    upstream_model: Annotated[str, "The model that the upstream is asked for."] = "default"
    upstream_key_file: Annotated[Path | None, "File that holds the upstream's key, in place of the variable."] = None


class AgentOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent is opened with."""

    bundle: Bundle = None
    worker: Annotated[
        list[str] | None,
        "HOST:PORT of a worker; repeatable, the cheapest first: one is asked after another fails.",
    ] = None
    directory: Annotated[str | None, "HOST:PORT of a cluster's directory, which says what workers there are."] = None
    target: Target = None
    no_drafter: Annotated[
        bool,
        "Load no drafter, on a board that is too small for one: workers of --target answer, and what they answered "
        "of late is drafted.",
    ] = False
    threads: Threads = None
    provider: Provider = None
    profiles: Profiles = Profiles()
    keys: WorkerKeys = WorkerKeys()
    notice: Annotated[float, "Seconds of silence after which a worker, or the link to it, is given up."] = 2.0
    server: UpstreamOptions = UpstreamOptions()
    offline: Annotated[bool, "Connect to no worker, whatever is asked."] = False


class GateOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the gate's promise is watched."""

    audit: Annotated[
        float,
        "Share of kept answers that is asked of the target afterwards, 0 to 1; a group whose answers differ more often "
        "than promised is not kept any more. Their pictures go to the worker.",
    ] = 0.0
    audit_spool: Annotated[
        Path | None,
        "Folder where answers wait for that, with their pictures, while no worker answers, also over a restart; else "
        "they wait in memory.",
    ] = None
    audit_key_file: Annotated[
        Path | None, "File of 64 hexadecimal digits, the key that seals the spool; needs Cutline's extra `keys`."
    ] = None


class JournalOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Where the target's answers are kept for `cutline learn`."""

    journal: Annotated[
        Path | None,
        "Folder that keeps pictures, questions and answers which the target gave, to learn from; without it nothing is "
        "kept.",
    ] = None
    journal_limit: Annotated[str, "Size of the journal; the oldest answers make room."] = "256MB"
    journal_key_file: JournalKeyFile = None


class Reuse(msgspec.Struct, frozen=True, kw_only=True):
    """What of one question is used for the next."""

    memory: Annotated[
        float,
        "Seconds for which an answer is given again to the same question about a near-identical image; 0 is never.",
    ] = 0.0
    fresh: Annotated[bool, "Use nothing of a question for the next: no pictures that a worker keeps, no states."] = (
        False
    )
