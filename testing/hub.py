"""A small hub on loopback that speaks Hugging Face's API, and fails as it is told, for tests of what is pulled."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin")  # which a hub keeps apart from git, on another host
STORE = "/store/"  # the path of that host, which is this one by another name


@dataclass(frozen=True, slots=True)
class Asked:
    """A download: of which file from which byte on, by which token, and from the host that keeps large files or not."""

    file: str
    start: int
    token: str | None
    stored: bool


@dataclass(slots=True)
class Faults:
    """What a hub does wrong, by the names of its files.

    `lies` are given in place of a file, `sizes` are said in place of the true ones. A download `breaks` off after so
    many bytes, as often as is said, or `stalls` at a byte until the hub ends. `statuses` are answers in place of those
    with a file; the path of the API has the empty name.
    """

    lies: dict[str, bytes] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    breaks: dict[str, list[int]] = field(default_factory=dict)
    stalls: dict[str, int] = field(default_factory=dict)
    statuses: dict[str, tuple[int, str]] = field(default_factory=dict)
    no_ranges: bool = False


class SmallHub:
    """Has the `files` of the model `name` by their names, as COMMIT. Of others it says that it has none.

    `token`, if there is one, is who may have the files. Downloads are put down in `asked`, requests of any kind in
    `paths`.
    """

    def __init__(self, name: str, files: Mapping[str, bytes], *, token: str | None = None) -> None:
        self.name = name
        self.files = dict(files)
        self.token = token
        self.faults = Faults()
        self.asked: list[Asked] = []
        self.paths: list[str] = []
        self.ended = threading.Event()

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Its URL."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *given: _Handler(self, *given))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            self.ended.set()
            server.shutdown()
            server.server_close()
            thread.join()

    def described(self) -> dict[str, Any]:
        """The model, as the API tells of it."""
        return {"id": self.name, "sha": COMMIT, "siblings": [self._sibling(name) for name in self.files]}

    def _sibling(self, name: str) -> dict[str, Any]:
        content = self.files[name]
        size = self.faults.sizes.get(name, len(content))
        blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
        told: dict[str, Any] = {"rfilename": name, "size": size, "blobId": blob}
        if name.endswith(LARGE):
            told["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 134}
        return told


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: SmallHub, *given: Any) -> None:
        self._hub = hub
        super().__init__(*given)

    def log_message(self, *given: Any) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        hub, path = self._hub, unquote(urlsplit(self.path).path)
        hub.paths.append(path)
        api = f"/api/models/{hub.name}"
        if path == api or path.startswith(f"{api}/revision/"):
            revision = path.removeprefix(api).removeprefix("/revision/")
            if "" in hub.faults.statuses:
                self._refuse(*hub.faults.statuses[""])
            elif "" in hub.faults.stalls:
                hub.ended.wait()
            elif revision in ("", "main", "v1", COMMIT):
                self._json(hub.described())
            else:
                self._refuse(404, "RevisionNotFound")
        elif path.startswith(f"/{hub.name}/resolve/"):
            revision, _, file = path.removeprefix(f"/{hub.name}/resolve/").partition("/")
            self._resolved(file, body=body, known=revision in ("main", "v1", COMMIT))
        elif path.startswith(STORE):
            self._content(path.removeprefix(STORE), body=body, stored=True)
        else:
            self._refuse(401, "RepoNotFound")  # as a hub says of one that it does not have

    def _resolved(self, file: str, *, body: bool, known: bool) -> None:
        hub = self._hub
        if file in hub.faults.statuses:
            self._refuse(*hub.faults.statuses[file])
        elif hub.token is not None and self.headers.get("authorization") != f"Bearer {hub.token}":
            self._refuse(401, "GatedRepo")
        elif not known:
            self._refuse(404, "RevisionNotFound")
        elif file not in hub.files:
            self._refuse(404, "EntryNotFound")
        elif file.endswith(LARGE):
            self.send_response(302)
            self._say_what(file, linked=True)
            # The same server by another name: to a client it is another host.
            self.send_header("location", f"http://localhost:{self.connection.getsockname()[1]}{STORE}{file}")
            self.send_header("content-length", "0")
            self.end_headers()
        else:
            self._content(file, body=body, stored=False)

    def _say_what(self, file: str, *, linked: bool) -> None:
        content, before = self._hub.files[file], "x-linked-" if linked else ""
        self.send_header("x-repo-commit", COMMIT)
        self.send_header(f"{before}etag", f'"{hashlib.sha256(content).hexdigest()}"')
        if linked:
            self.send_header("x-linked-size", str(len(content)))

    def _content(self, file: str, *, body: bool, stored: bool) -> None:
        hub, faults = self._hub, self._hub.faults
        if file not in hub.files or (stored and file in faults.statuses):
            self._refuse(*faults.statuses.get(file, (404, "")))
            return
        content = faults.lies.get(file, hub.files[file])
        asked = "" if faults.no_ranges else self.headers.get("range", "")
        start = int(asked.removeprefix("bytes=").partition("-")[0] or 0)
        left = content[start:]
        self.send_response(206 if asked else 200)
        self._say_what(file, linked=False)
        self.send_header("content-length", str(len(left)))
        if asked:
            self.send_header("content-range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if not body:
            return
        hub.asked.append(Asked(file, start, self.headers.get("authorization"), stored))
        breaks = faults.breaks.get(file)
        sent = breaks.pop(0) if breaks else max(0, faults.stalls.get(file, len(content)) - start)
        self.wfile.write(left[:sent])
        if sent < len(left):
            self.wfile.flush()
            if file in faults.stalls:
                hub.ended.wait()
            self.close_connection = True

    def _json(self, content: object) -> None:
        told = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("x-error-code", code)
        self.send_header("content-length", "0")
        self.end_headers()
