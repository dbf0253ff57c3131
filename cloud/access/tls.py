"""TLS credentials of a gRPC server, reloaded when their files change."""

from __future__ import annotations

import functools
from typing import Any

import grpc

from cutline.protos.channel.credentials import ServerKeys, check_authorities, read_pair, read_public
from cutline.protos.channel.reloading import Renewed


def server_credentials(keys: ServerKeys) -> Any:
    """Credentials for a gRPC server's port. Raises InputError for files that cannot be read."""
    configuration = Renewed("the certificate", keys.files, functools.partial(_configuration, keys))
    # gRPC calls `changed` at every handshake, on a thread of its own. Open connections keep their certificate. gRPC
    # speaks TLS 1.2 and later only.
    return grpc.dynamic_ssl_server_credentials(
        configuration.now(), configuration.changed, require_client_authentication=bool(keys.client_ca)
    )


def _configuration(keys: ServerKeys) -> Any:
    certificate, key = read_pair(keys.certificate, keys.key)
    authorities = None
    if keys.client_ca is not None:
        authorities = read_public(keys.client_ca, what="file of authorities")
        check_authorities(authorities, keys.client_ca)
    return grpc.ssl_server_certificate_configuration([(key, certificate)], authorities)
