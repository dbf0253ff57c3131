"""A private certificate authority in a folder, and the certificates that it signs: EC P-256 throughout.

The authority signs for one fleet: whoever has its key can be any worker and any device of it. A server's certificate
is no device's, nor the reverse: each says what it is for.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cutline.cli.keys import LEAF_DAYS
from cutline.core.storage.files import write_new
from cutline.errors import InputError
from cutline.protos.channel.credentials import read_private, read_public
from cutline.protos.channel.token_file import check_tenant

CA_DAYS = 5 * 365
ALWAYS = ("localhost", "127.0.0.1", "::1")  # hosts of every server's certificate: tunnels end there
_SKEW = datetime.timedelta(hours=1)  # a small board's clock may be slow when it boots

_Purpose = x509.ObjectIdentifier
SERVER: _Purpose = ExtendedKeyUsageOID.SERVER_AUTH
DEVICE: _Purpose = ExtendedKeyUsageOID.CLIENT_AUTH


@dataclass(frozen=True, slots=True)
class Pair:
    """The files of one certificate and its private key."""

    certificate: Path
    key: Path


def pair_of(folder: Path, name: str) -> Pair:
    """Where the certificate called `name` stands."""
    return Pair(folder / f"{name}.crt", folder / f"{name}.key")


class Authority:
    """The authority whose files are `ca.crt` and `ca.key` in a folder. What it makes is there once it is written."""

    def __init__(self, folder: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.folder = folder
        self._certificate = certificate
        self._key = key
        self._made = dict[Path, bytes]()

    @classmethod
    def make(cls, folder: Path) -> Authority:
        """A new one for a folder. Raises InputError where that has one."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Cutline private authority")])
        usage = _usage(signs=True)
        certificate = (
            _builder(name, name, key.public_key(), days=CA_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA256())
        )
        authority = cls(folder, certificate, key)
        authority._keep(pair_of(folder, "ca"), certificate, key)
        return authority

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """The one that is there. Raises InputError."""
        pair = pair_of(folder, "ca")
        if missing := [str(file) for file in (pair.certificate, pair.key) if not file.exists()]:
            raise InputError(
                f"{folder} has no authority ({missing[0]} is not there); make one with `cutline keys init`"
            )
        shown = read_public(pair.certificate, what="authority's certificate")
        secret = read_private(pair.key, what="authority's key")
        try:
            certificate = x509.load_pem_x509_certificate(shown)
            key = serialization.load_pem_private_key(secret, password=None)
        except (ValueError, TypeError):  # the latter where the key has a passphrase
            raise InputError(f"the authority in {folder} does not read; is it of `cutline keys init`?") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise InputError(f"{pair.key} is not the key of {pair.certificate}")
        return cls(folder, certificate, key)

    def signed(self, name: str) -> tuple[str, bytes]:
        """Whose the certificate called `name` is, and what this authority signed of it. Raises InputError."""
        file = pair_of(self.folder, check_tenant(name)).certificate
        try:
            certificate = x509.load_pem_x509_certificate(read_public(file, what="certificate"))
            certificate.verify_directly_issued_by(self._certificate)
            (owner,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
            purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            raise InputError(f"{file} is no certificate that the authority in {self.folder} signed") from None
        if DEVICE not in purposes:
            raise InputError(f"{file} is not a device's, and agents read no such list; make a new authority")
        return str(owner.value), certificate.tbs_certificate_bytes

    def sign(self, name: str, purpose: _Purpose, *, hosts: Sequence[str] = (), days: int = LEAF_DAYS) -> Pair:
        """A new certificate and key called `name`, for a SERVER that is reached by `hosts`, or a DEVICE.

        Raises InputError where there is one of that name.
        """
        check(names=[name], hosts=hosts, days=days)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        alternatives = [_alternative(host) for host in dict.fromkeys(hosts)] or [x509.DNSName(name)]
        certificate = (
            _builder(subject, self._certificate.subject, key.public_key(), days=days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        pair = pair_of(self.folder, name)
        self._keep(pair, certificate, key)
        return pair

    def write(self, others: Mapping[str, str] | None = None) -> None:
        """Write all that was made, and `others` by the names of their files, for their owner alone to read; or nothing.

        Raises InputError where the folder cannot be written or has one of them, StorageError where there is no room.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make {self.folder}: {error.strerror}") from None
        write_new(self._made | {self.folder / name: text.encode() for name, text in (others or {}).items()})
        self._made.clear()

    def _keep(self, pair: Pair, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        for there in (pair.certificate, pair.key):
            if there.exists():
                raise InputError(f"{there} is there already; move it away first, for nothing is written over")
        form = serialization.PrivateFormat.PKCS8
        secret = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        self._made |= {pair.key: secret, pair.certificate: certificate.public_bytes(serialization.Encoding.PEM)}


def check(*, names: Sequence[str], hosts: Sequence[str], days: int) -> None:
    """That certificates can be signed so, before any file is written. Raises InputError."""
    if not 1 <= days <= CA_DAYS:
        raise InputError(f"--days is {days}; give 1 to {CA_DAYS}")
    for place, name in enumerate(names):
        check_tenant(name)
        if name == "ca" or name in names[:place]:
            raise InputError(f"{name!r} is taken; choose another name")
    for host in hosts:
        _alternative(host)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(host: str) -> x509.GeneralName:
    """A host as certificates name it. Raises InputError."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    if not host or len(host) > 253 or any(character.isspace() or character in ":/@" for character in host):
        raise InputError(f"--host {host!r} is no host; give a name or an address, without a port")
    try:
        return x509.DNSName(host)
    except ValueError:
        raise InputError(f"--host {host!r} is not ASCII; give its xn-- form") from None
