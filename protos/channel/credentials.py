"""Credentials of agents and servers: tokens, certificates, and the gRPC channels made from them."""

from __future__ import annotations

import contextlib
import os
import ssl
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc

from cutline.errors import InputError
from cutline.protos.channel.address import is_loopback, parse_address
from cutline.protos.channel.keepalive import CLIENT

MAX_FILE = 1 << 20  # bytes of a certificate, a chain, or a system's authorities
_MAX_TOKEN_FILE = 4096  # bytes

TENANT_KEY = "cutline-tenant"  # metadata key: the caller's sub-tenant, from an agent or from a worker to the next one
EARLY_KEY = "cutline-early"  # metadata key: a worker announces a session to the next one, and opens it after its pass

_OPTIONS = [
    # A dead link is noticed within half a minute, also while the worker is silent.
    *CLIENT,
    # A failed connection is retried soon: a device cannot wait for the default of two minutes. If packets are lost, an
    # attempt ends before its default of 20 s, as TCP repeats its first packet at growing intervals.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 500),
    # A new channel must not share the dead connection of the channel that it replaces.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", (1 << 20) + (1 << 16)),
    # A proxy in the environment is meant for browsers, not for the worker on a local address.
    ("grpc.enable_http_proxy", 0),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentKeys:
    """An agent's credentials.

    `ca` is a file of the authorities that it trusts to sign a worker's certificate. Without it traffic is plain text,
    which is allowed on loopback only. `certificate` and `key` are the agent's own. Give `token` or `token_file`.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: str = field(default="", repr=False)
    token_file: Path | None = None

    def check(self) -> None:
        """Raises InputError for files that cannot be read, or options that do not fit together."""
        if (self.certificate is None) != (self.key is None):
            raise InputError("--cert and --key go together; give both")
        if self.certificate is not None and self.ca is None:
            raise InputError("--cert is shown to a worker that --ca vouches for; give --ca too")
        if self.ca is not None:
            _credentials(self)
        self.metadata()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of TLS."""
        return tuple(file for file in (self.ca, self.certificate, self.key) if file is not None)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of every call. The token file is read each time, so a new token needs no restart.

        Raises InputError.
        """
        token = self.token if self.token_file is None else read_token(self.token_file)
        return (("authorization", f"Bearer {token}"),) if token else ()


NO_KEYS = AgentKeys()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerKeys:
    """A server's `certificate` and `key`. With `client_ca` every caller needs a certificate that it signed.

    Certificates in the list `revoked` are refused.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None
    revoked: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of TLS, without `revoked`."""
        return tuple(file for file in (self.certificate, self.key, self.client_ca) if file is not None)


def open_channel(address: str, keys: AgentKeys) -> Any:
    """A channel to the worker at `address`. Raises InputError, also for plain text to another machine."""
    host, _ = parse_address(address)
    if keys.ca is not None:
        # gRPC speaks TLS 1.2 or later. The worker's name or address must be in its certificate.
        return grpc.aio.secure_channel(address, _credentials(keys), options=_OPTIONS)
    if not is_loopback(host):
        raise InputError(f"traffic to {host} would be plain text; give --ca, the file of who vouches for the worker")
    return grpc.aio.insecure_channel(address, options=_OPTIONS)


def read_token(path: Path) -> str:
    """The token in a private file. Raises InputError."""
    token = read_private(path, what="token file", limit=_MAX_TOKEN_FILE).decode("ascii", "replace").strip()
    return check_token(token, f"the token file {path}")


def check_token(token: str, where: str) -> str:
    """Check that a token can be sent as metadata; returns it. Raises InputError, which does not quote the token."""
    if not token or not all("!" <= character <= "~" for character in token):
        raise InputError(f"{where} holds no token; make one with `cutline keys token`")
    return token


def read_private(path: Path, *, what: str, limit: int = MAX_FILE) -> bytes:
    """The content of a file. Raises InputError, also if everybody on this machine may read it."""
    return _read(path, what, limit, secret=True)


def read_public(path: Path, *, what: str) -> bytes:
    """The content of a file that need not be secret. Raises InputError."""
    return _read(path, what, MAX_FILE, secret=False)


def _read(path: Path, what: str, limit: int, *, secret: bool) -> bytes:
    try:
        # `fstat` checks the very file that is read. Without O_NONBLOCK opening a pipe would block.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise InputError(f"the {what} {path} is no regular file")
            if secret and mode & stat.S_IRWXO:
                raise InputError(f"everybody on this machine may read the {what} {path}; `chmod 600 {path}`")
            content = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"cannot read the {what} {path}: {error.strerror}") from None
    if len(content) > limit:
        raise InputError(f"{path} is larger than {limit} bytes; that is no such file")
    return content


FileVersion = tuple[int, int, int]


def file_version(path: Path) -> FileVersion | None:
    """A value that changes when the file at `path` does; None if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _credentials(keys: AgentKeys) -> Any:
    assert keys.ca is not None
    authorities = read_public(keys.ca, what="file of authorities")
    certificate = key = None
    if keys.certificate is not None and keys.key is not None:
        certificate, key = read_pair(keys.certificate, keys.key)
    check_authorities(authorities, keys.ca)
    return grpc.ssl_channel_credentials(authorities, key, certificate)


def read_pair(certificate: Path, key: Path) -> tuple[bytes, bytes]:
    """The contents of a certificate chain and its key. Raises InputError if they do not match."""
    return load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate, key)


def load_pair(context: ssl.SSLContext, certificate: Path, key: Path) -> tuple[bytes, bytes]:
    """Load a certificate chain and its key into `context`; returns their contents. Raises InputError."""
    pair = read_public(certificate, what="certificate"), read_private(key, what="key")
    try:
        with _in_memory(pair[0]) as shown, _in_memory(pair[1]) as secret:
            # With no passphrase at all OpenSSL would prompt for one in the terminal.
            context.load_cert_chain(shown, secret, password="")
    except (ssl.SSLError, ValueError):
        raise InputError(
            f"{key} is not the key of {certificate}, has a passphrase, or one of them is not PEM"
        ) from None
    return pair


@contextlib.contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """A path to `content`, as OpenSSL reads files only, and the original may have changed since it was checked."""
    # On systems without memfd an unlinked temporary file.
    with os.fdopen(os.memfd_create("pem"), "wb") if hasattr(os, "memfd_create") else tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        file.seek(0)
        yield f"/dev/fd/{file.fileno()}"


def client_context(keys: AgentKeys) -> ssl.SSLContext:
    """A TLS context of `keys`, which must have a `ca`, for clients other than gRPC's. Raises InputError."""
    assert keys.ca is not None
    authorities = read_public(keys.ca, what="file of authorities")
    check_authorities(authorities, keys.ca)
    context = ssl.create_default_context(cadata=authorities.decode("ascii"))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if keys.certificate is not None and keys.key is not None:
        load_pair(context, keys.certificate, keys.key)
    return context


def server_context(keys: ServerKeys) -> ssl.SSLContext:
    """A TLS context for servers other than gRPC's. It requires client certificates if there is a `client_ca`.

    Raises InputError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # older ones are broken
    load_pair(context, keys.certificate, keys.key)
    if keys.client_ca is not None:
        authorities = read_public(keys.client_ca, what="file of authorities")
        check_authorities(authorities, keys.client_ca)
        context.load_verify_locations(cadata=authorities.decode("ascii"))
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def check_authorities(pem: bytes, path: Path) -> None:
    """Check that the content of a file is certificates in PEM. Raises InputError."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise InputError(f"{path} holds no certificates in PEM") from None


def _own_fault(certificate: Path) -> str | None:
    """Why an agent's own certificate is out of date, as text, or None. A server gives no reason when it refuses one."""
    try:
        from cryptography import x509  # of the extra `keys`; without it the error stays as gRPC reports it
    except ModuleNotFoundError:
        return None
    try:
        loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError):
        return None
    now = datetime.now(UTC)
    if loaded.not_valid_after_utc < now:
        return f"{certificate} has expired; renew it, and see that this machine's clock is right"
    if loaded.not_valid_before_utc > now:
        return f"{certificate} is not valid yet; see that this machine's clock is right"
    return None


# Texts in gRPC's errors of failed handshakes, and what they mean.
_HANDSHAKES = (
    ("certificate has expired", "its certificate has expired; renew it, and see that this machine's clock is right"),
    ("certificate is not yet valid", "its certificate is not valid yet; see that this machine's clock is right"),
    ("Hostname Verification", "its certificate is for another host; see `cutline keys init --host`"),
    ("unsupported certificate purpose", "its certificate is not one of a server; see `cutline keys init`"),
    ("CERTIFICATE_VERIFY_FAILED", "nobody in the file given with --ca vouches for it"),
    ("WRONG_VERSION_NUMBER", "it speaks plain text, not TLS"),
)


def link_fault(details: str, address: str, keys: AgentKeys) -> str:
    """The message for a failed connection, from gRPC's `details` and what is known of `keys`."""
    for text, meaning in _HANDSHAKES:
        if text in details:
            return f"no trusted worker at {address}: {meaning}"
    if keys.certificate is not None and (why := _own_fault(keys.certificate)) is not None:
        return f"no worker at {address} takes this agent: {why}"
    if "Socket closed" in details and "failed to connect" in details:
        asks = "wants another --cert and --key" if keys.ca is not None else "wants TLS: give --ca"
        return f"no worker answers at {address}; it is not running, or {asks}"
    return f"no worker answers at {address}; is it running, and the link up?"
