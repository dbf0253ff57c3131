"""What is told of a link that does not come about."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cutline.protos.channel.credentials import AgentKeys, link_fault


def certificate(path: Path, *, begins: timedelta, ends: timedelta) -> Path:
    key, now, name = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC), x509.Name([])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.mark.parametrize(
    ("begins", "ends", "words"),
    [
        (timedelta(-2), timedelta(-1), "has expired; renew it"),
        (timedelta(1), timedelta(2), "is not valid yet"),
        (timedelta(-1), timedelta(1), "is it running"),
    ],
)
def test_an_agents_own_certificate_is_named_where_its_time_is_over(
    tmp_path: Path, begins: timedelta, ends: timedelta, words: str
) -> None:
    own = certificate(tmp_path / "agent.crt", begins=begins, ends=ends)
    said = link_fault("Socket is gone", "worker:1", AgentKeys(ca=own, certificate=own, key=own))
    assert words in said
    assert ("is it running" in said) == ("is it running" in words)
