"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Bundle = Annotated[Path | None, typer.Option(help="The bundle's folder; without it, the demo's.", show_default=False)]
Worker = Annotated[str | None, typer.Option(help="HOST:PORT of a worker.", show_default=False)]
Workers = Annotated[
    list[str] | None,
    typer.Option(
        "--worker",
        help="HOST:PORT of a worker; repeatable, the cheapest first: one is asked after another fails.",
        show_default=False,
    ),
]
Directory = Annotated[
    str | None,
    typer.Option(help="HOST:PORT of a cluster's directory, which says what workers there are.", show_default=False),
]
Upstream = Annotated[
    str | None,
    typer.Option(
        help="URL of an OpenAI-compatible server that answers in place of a worker, as https://api.example.com/v1; its "
        "key is taken from CUTLINE_UPSTREAM_KEY.",
        show_default=False,
    ),
]
UpstreamModel = Annotated[str, typer.Option(help="The model that the upstream is asked for.")]
UpstreamKeyFile = Annotated[
    Path | None, typer.Option(help="File that holds the upstream's key, in place of the variable.", show_default=False)
]
Memory = Annotated[
    float,
    typer.Option(
        help="Seconds for which an answer is given again to the same question about a near-identical image; 0 is never."
    ),
]
Fresh = Annotated[
    bool,
    typer.Option("--fresh", help="Use nothing of a question for the next: no pictures that a worker keeps, no states."),
]
Log = Annotated[str, typer.Option(help="How the log is written to stderr: text or json, a line an event.")]
Offline = Annotated[bool, typer.Option("--offline", help="Connect to no worker, whatever is asked.")]
Notice = Annotated[float, typer.Option(help="Seconds of silence after which a worker, or the link to it, is given up.")]
Listen = Annotated[str, typer.Option(help="HOST:PORT to listen at; port 0 takes any free one.")]
Target = Annotated[
    Path | None,
    typer.Option(help="The target's bundle, for cuts; without --bundle and it, the demo's.", show_default=False),
]
Threads = Annotated[
    int | None, typer.Option(help="Threads of the model; without it, the cores this process has.", show_default=False)
]
Provider = Annotated[
    str | None,
    typer.Option(help="ONNX Runtime's execution provider: cpu, cuda, coreml, ...; without it cpu.", show_default=False),
]
EdgeProfile = Annotated[
    str | None,
    typer.Option(
        help="Profile of this device, to plan mode auto with: a name, or a TOML file of `cutline profile`.",
        show_default=False,
    ),
]
CloudProfile = Annotated[
    str | None, typer.Option(help="Profile of the worker's machine, likewise.", show_default=False)
]
Link = Annotated[
    str | None,
    typer.Option(
        help="Name of a link profile, or a TOML file: what the link is taken for at first.", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Serve whoever asks, in plain text: on this machine's own addresses alone.")
]
TlsCert = Annotated[
    Path | None, typer.Option(help="Certificate to be known by, in PEM, of `cutline keys init`.", show_default=False)
]
TlsKey = Annotated[Path | None, typer.Option(help="Its private key.", show_default=False)]
ClientCa = Annotated[
    Path | None,
    typer.Option(help="Certificates in PEM of who vouches for callers: each must show one.", show_default=False),
]
Revoked = Annotated[
    Path | None,
    typer.Option(
        help="TOML file of `cutline keys revoke`: certificates that are not taken any more.", show_default=False
    ),
]
Tokens = Annotated[
    Path | None,
    typer.Option(help="TOML file of who may come with which token, and of their limits.", show_default=False),
]
Ca = Annotated[
    Path | None,
    typer.Option(help="Certificates in PEM of who vouches for the worker, to reach it by TLS.", show_default=False),
]
Cert = Annotated[
    Path | None, typer.Option(help="This device's own certificate, for a worker that asks for one.", show_default=False)
]
Key = Annotated[Path | None, typer.Option(help="Its private key.", show_default=False)]
TokenFile = Annotated[
    Path | None,
    typer.Option(help="File that holds the token for the worker; without it, CUTLINE_TOKEN.", show_default=False),
]
