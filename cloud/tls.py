"""What a server shows of itself, and asks of its callers: certificates, read anew when their files change."""

from __future__ import annotations

import logging
from typing import Any

import grpc

from cutline.errors import InputError
from cutline.protos.security import (
    FileVersion,
    ServerKeys,
    check_authorities,
    file_version,
    read_pair,
    read_public,
)

log = logging.getLogger(__name__)

_Versions = tuple[FileVersion | None, ...]


def server_credentials(keys: ServerKeys) -> Any:
    """For a gRPC server's port. Raises InputError for files that do not read."""
    files = _Files(keys)
    # gRPC asks at every handshake, on a thread of its own; open connections keep what they were made with. TLS 1.2 is
    # the least that it speaks.
    return grpc.dynamic_ssl_server_credentials(files.read(), files, require_client_authentication=bool(keys.client_ca))


class _Files:
    def __init__(self, keys: ServerKeys) -> None:
        self._keys = keys
        self._versions = self._look()

    def read(self) -> Any:
        """The configuration that the files make now. Raises InputError."""
        keys = self._keys
        certificate, key = read_pair(keys.certificate, keys.key)
        authorities = None
        if keys.client_ca is not None:
            authorities = read_public(keys.client_ca, what="file of authorities")
            check_authorities(authorities, keys.client_ca)
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authorities)

    def __call__(self) -> Any:
        """The configuration if the files have changed and read, else None: the old one stays."""
        versions = self._look()
        if versions == self._versions:
            return None
        self._versions = versions
        try:
            made = self.read()
        except InputError as error:  # perhaps one of the pair is not written yet
            log.error("%s; the certificate from before still counts", error)
            return None
        log.info("the certificate was read anew")
        return made

    def _look(self) -> _Versions:
        return tuple(
            file_version(file) for file in (self._keys.certificate, self._keys.key, self._keys.client_ca) if file
        )
