"""Keys that change while a worker, its metrics and an agent run; and certificates that are revoked meanwhile."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import utils
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from cutline.cli.access.certificates import DEVICE, SERVER, Authority, Pair, pair_of
from cutline.cloud.access.auth import Callers
from cutline.cloud.serving.server import Access, WorkerOptions, serve
from cutline.cloud.telemetry.metrics import WorkerMetrics, show
from cutline.errors import AccessDenied, InputError, WorkerUnavailable
from cutline.models.bundle import Bundle
from cutline.protos.channel.credentials import AgentKeys, ServerKeys, client_context
from cutline.protos.channel.revocation import Revoked, revoked_entry, signed_hash, signed_part
from cutline.protos.channel.token_file import token_entry
from cutline.protos.client import WorkerClient
from cutline.protos.messages import Confirmed, Open, image_chunks

Case = tuple[Open, bytes, tuple[int, ...]]

SECONDS = 30
# Of P-256 (SEC 2, section 2.4.2): with (r, s) also (r, ORDER - s) is a signature of the same.
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class Fleet:
    """An authority, a server, two devices and an empty list of those that are revoked."""

    def __init__(self, folder: Path) -> None:
        self.authority = authority = Authority.make(folder / "keys")
        self.ca = pair_of(authority.folder, "ca").certificate
        server = authority.sign("server", SERVER, hosts=["127.0.0.1"])
        self.revoked = folder / "revoked.toml"
        self.revoked.touch()
        self.server = ServerKeys(
            certificate=server.certificate, key=server.key, client_ca=self.ca, revoked=self.revoked
        )
        self.lost, self.other = (self.agent(authority.sign(name, DEVICE)) for name in ("lost", "other"))
        authority.write()

    def agent(self, pair: Pair) -> AgentKeys:
        return AgentKeys(ca=self.ca, certificate=pair.certificate, key=pair.key)

    def revoke(self, name: str) -> None:
        with self.revoked.open("a") as file:
            file.write(revoked_entry(*self.authority.signed(name)))


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def run(bundle: Bundle, main: Callable[[str], Awaitable[None]], access: Access) -> None:
    async def limited() -> None:
        async with (
            asyncio.timeout(SECONDS),
            serve(bundle, WorkerOptions(slots=2, context=256), access=access) as address,
        ):
            await main(address)

    asyncio.run(limited())


def malleated(pem: bytes) -> bytes:
    """The same certificate with another signature of its authority's, which nobody needs a key for."""
    certificate = x509.load_pem_x509_certificate(pem)
    r, s = utils.decode_dss_signature(certificate.signature)
    signature = utils.encode_dss_signature(r, ORDER - s)
    whole = certificate.public_bytes(Encoding.DER)
    tail = len(certificate.signature) + 1  # a bit string begins with how many bits of its end do not count
    head = whole[4 : len(whole) - tail - 2]  # what was signed, and by which algorithm
    content = head + bytes([3, len(signature) + 1, 0]) + signature
    again = x509.load_der_x509_certificate(b"\x30\x82" + len(content).to_bytes(2, "big") + content)
    return again.public_bytes(Encoding.PEM)


@pytest.mark.threat("doors")
def test_a_device_that_is_revoked_is_shut_out_from_its_next_call_on(
    bundle: Bundle, fleet: Fleet, case: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On the connection that it has; by no other signature, and by no token. Others go on, and so does what is open."""
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(token_entry("warehouse", "token"))
    twin = tmp_path / "twin.crt"
    assert fleet.lost.certificate is not None
    twin.write_bytes(malleated(fleet.lost.certificate.read_bytes()))
    assert twin.read_bytes() != fleet.lost.certificate.read_bytes()

    async def main(address: str) -> None:
        async with (
            WorkerClient(address, fleet.lost) as lost,
            WorkerClient(address, fleet.other) as other,
            WorkerClient(address, replace(fleet.lost, certificate=twin)) as forged,
            WorkerClient(address, replace(fleet.lost, token="token")) as holder,
        ):
            for client in (lost, other, forged, holder):
                await client.describe()
            async with lost.session(case[0], image_chunks(case[1]), timeout=SECONDS) as session:
                events = session.events()
                await anext(events)
                fleet.revoke("lost")
                for client in (lost, forged, holder):
                    with pytest.raises(AccessDenied, match="certificate of lost was revoked"):
                        await client.describe()
                said = [token async for one in events if isinstance(one, Confirmed) for token in one.tokens]
                assert tuple(said) == case[2]
            await other.describe()
            fleet.revoked.write_text("[[revoked]")  # which changes nothing
            with pytest.raises(AccessDenied):
                await lost.describe()
            fleet.revoked.unlink()
            with pytest.raises(AccessDenied):
                await lost.describe()
            await other.describe()

    with caplog.at_level(logging.INFO, logger="cutline.audit"):
        run(bundle, main, Access(keys=fleet.server, tokens=tokens))
    denied = [vars(record)["fields"] for record in caplog.records if record.message == "denied"]
    assert denied[0]["method"] == "/cutline.v1.Worker/Describe"
    assert "certificate of lost was revoked" in denied[0]["why"]


@pytest.mark.threat("doors")
def test_without_a_certificate_that_can_be_looked_up_nobody_comes(fleet: Fleet, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    tokens.write_text(token_entry("warehouse", "token"))
    callers = Callers.of(fleet.server, tokens)
    known = [("authorization", "Bearer token")]
    assert fleet.other.certificate is not None
    pem = fleet.other.certificate.read_bytes()
    shown = {"x509_common_name": [b"other"], "x509_pem_cert": [pem]}
    assert callers.find(known, shown).tenant == "warehouse"
    assert callers.find([], shown).tenant == "other"
    named = {"x509_common_name": [b"other"]}
    for bad in (named, *(named | {"x509_pem_cert": pems} for pems in ([], [b"?"], [b"\xff"]))):
        for metadata in (known, []):
            with pytest.raises(AccessDenied, match="no certificate"):
                callers.find(metadata, bad)


def test_what_was_signed_is_found_as_another_library_finds_it(fleet: Fleet) -> None:
    for file in fleet.authority.folder.glob("*.crt"):
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
        whole = certificate.public_bytes(Encoding.DER)
        assert signed_part(whole) == certificate.tbs_certificate_bytes
        for end in range(len(certificate.tbs_certificate_bytes) + 4):
            assert signed_part(whole[:end]) is None


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_what_is_no_certificate_is_denied(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    found = signed_part(data)
    assert found is None or found in data
    file = tmp_path_factory.getbasetemp() / "list.toml"
    file.write_text(revoked_entry("x", found or b""))
    with pytest.raises(AccessDenied):
        Revoked(file).check(data)


@pytest.mark.parametrize("text", ["[[revoked]", "\0", '[[revoked]]\nname = "a"\n', "revoked = 3", "other = 1"])
def test_a_list_that_does_not_read(tmp_path: Path, text: str) -> None:
    file = tmp_path / "revoked.toml"
    with pytest.raises(InputError, match="cannot read"):
        Revoked(file)
    file.write_text(text)
    with pytest.raises(InputError, match="does not read"):
        Revoked(file)
    file.write_text(revoked_entry("a", b"one") + revoked_entry("a", b"two"))
    assert [Revoked(file).has(one) for one in (b"one", b"two", b"three")] == [True, True, False]
    assert signed_hash(b"one") in file.read_text()


def put(pair: Pair, agent: AgentKeys) -> None:
    """Have the files of `agent` be that pair."""
    assert agent.certificate is not None
    assert agent.key is not None
    shutil.copy(pair.key, agent.key)
    shutil.copy(pair.certificate, agent.certificate)


def test_an_agents_certificate_that_changes_counts_for_its_next_call(
    bundle: Bundle, fleet: Fleet, case: Case, tmp_path: Path
) -> None:
    """A session that is open stays on its connection, and one that cannot be read changes nothing."""
    authority = Authority.make(tmp_path / "strange")
    strange = authority.sign("camera", DEVICE)
    first, second = (fleet.authority.sign(name, DEVICE) for name in ("first", "second"))
    for one in (authority, fleet.authority):
        one.write()
    agent = AgentKeys(ca=fleet.ca, certificate=tmp_path / "now.crt", key=tmp_path / "now.key")
    put(strange, agent)

    async def main(address: str) -> None:
        async with WorkerClient(address, agent) as client:
            with pytest.raises(WorkerUnavailable, match="--cert"):
                await client.describe()
            put(first, agent)
            await client.describe()
            async with client.session(case[0], image_chunks(case[1]), timeout=SECONDS) as session:
                events = session.events()
                await anext(events)
                put(second, agent)
                fleet.revoke("first")
                await client.describe()
                assert await session.beat()  # that is refused, and goes over the first connection
                said = [token async for one in events if isinstance(one, Confirmed) for token in one.tokens]
                assert tuple(said) == case[2]
            assert agent.key is not None
            agent.key.write_bytes(b"half a k")
            await client.describe()
            await asyncio.wait([*client._connection._closing, asyncio.create_task(asyncio.sleep(0))])
            assert not client._connection._closing

    run(bundle, main, Access(keys=fleet.server))


def test_keys_of_metrics_that_change_count_for_the_next_reader(fleet: Fleet, tmp_path: Path) -> None:
    """Of the server, and of the authority that readers are known by; one that is revoked reads nothing."""
    other = Authority.make(tmp_path / "other")
    again = other.sign("server", SERVER, hosts=["127.0.0.1"])
    reader = fleet.agent(other.sign("reader", DEVICE))
    other.write()
    keys = ServerKeys(
        certificate=tmp_path / "now.crt", key=tmp_path / "now.key", client_ca=tmp_path / "ca", revoked=fleet.revoked
    )

    def serve_as(pair: Pair, authority: Authority) -> None:
        shutil.copy(pair_of(authority.folder, "ca").certificate, tmp_path / "ca")
        shutil.copy(pair.certificate, keys.certificate)
        shutil.copy(pair.key, keys.key)

    def reads(agent: AgentKeys, authority: Authority) -> bool:
        context = client_context(replace(agent, ca=pair_of(authority.folder, "ca").certificate))
        try:
            return "cutline_slots" in httpx.get(url, verify=context, timeout=5, trust_env=False).text
        except httpx.HTTPError:
            return False

    serve_as(pair_of(fleet.authority.folder, "server"), fleet.authority)
    with show(WorkerMetrics(), "0.0.0.0:0", keys) as address:
        url = f"https://127.0.0.1:{address.rpartition(':')[2]}/metrics"
        assert reads(fleet.lost, fleet.authority)
        assert not reads(reader, fleet.authority)
        fleet.revoke("lost")
        assert not reads(fleet.lost, fleet.authority)
        assert reads(fleet.other, fleet.authority)
        serve_as(again, other)
        assert reads(reader, other)
        assert not reads(fleet.other, other)
        keys.certificate.write_bytes(b"half a cert")
        assert reads(reader, other)
