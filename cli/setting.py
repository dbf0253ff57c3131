"""What several commands do before their own work: find the bundle, count threads, check an address."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cutline.cli.options import (
    Admission,
    AgentOptions,
    GateOptions,
    JournalOptions,
    Profiles,
    Reuse,
    ServerTls,
    UpstreamOptions,
    WorkerKeys,
)
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.devices.machine.cores import usable_cores
from cutline.devices.profile import CPU
from cutline.errors import BundleError, InputError
from cutline.models.bundle import Bundle
from cutline.models.hub.library import find_bundle, name_given, target_of
from cutline.protos.channel.address import is_loopback, parse_address

if TYPE_CHECKING:
    from cutline.core.escalations.recorder import EscalationRecorder
    from cutline.core.storage.envelope import SealingKey
    from cutline.edge.agent import Agent
    from cutline.edge.audit.spool import AuditSpool
    from cutline.edge.generation.semantic_cache import SemanticCache
    from cutline.edge.inference.encoder import Encoder
    from cutline.edge.offload.backends.openai_upstream import Upstream
    from cutline.edge.offload.discovery import ListedWorkers
    from cutline.edge.planning.planner import Planner
    from cutline.protos.channel.credentials import AgentKeys, ServerKeys


NOTHING_SAID, UNWATCHED = Reuse(), GateOptions()


def open_drafter(path: Path | None) -> Bundle:
    """The drafter's bundle at `path`, which may be its name, or the demo's. Raises BundleError."""
    bundle = Bundle.open(find_bundle(path, "drafter") if path else DRAFTER)
    if bundle.manifest.role != "drafter":
        raise BundleError(f"{bundle.path} holds a {bundle.manifest.role}; give a drafter's bundle, or --no-drafter")
    return bundle


def open_target(path: Path | None) -> Bundle:
    """The target's bundle at `path`, which may be its name, or the demo's. Raises BundleError."""
    return Bundle.open(find_bundle(path, "target") if path else TARGET)


def open_target_for(path: Path | None, drafter: Path | None) -> Bundle | None:
    """What a device needs of the target's bundle at `path`, or of the one that it names.

    Without it the demo's, if the drafter is the demo's; and if the drafter is given by name its own target, if that is
    at hand. Raises BundleError.
    """
    if path is not None:
        found = find_bundle(path, "target")
    elif drafter is None:
        found = TARGET
    elif name_given(drafter) is None or (own := target_of(find_bundle(drafter, "drafter"))) is None:
        return None
    else:
        found = own
    return Bundle.open(found, "device")


def open_planner(
    given: Profiles, drafter: Bundle, target: Bundle | None, *, provider: str = CPU, upstream: str | None = None
) -> Planner | None:
    """The planner of an agent with these profiles, before workers or an `upstream`'s model; None where none is given.

    `provider` is ONNX Runtime's on this device.

    Raises InputError, BundleError.
    """
    if not given.given:
        return None
    edge, cloud, link = given.edge_profile, given.cloud_profile, given.link
    if upstream is not None:
        return _upstream_planner(given, drafter, model=upstream, provider=provider)
    if edge is None or cloud is None or link is None:
        raise InputError("planning needs all three of --edge-profile, --cloud-profile and --link")
    if target is None:
        raise InputError("planning needs the target's bundle; give it with --target")

    from cutline.devices.link import load_link
    from cutline.edge.planning.plan_inputs import setting_of
    from cutline.edge.planning.planner import Planner

    setting = setting_of(drafter, target, edge=edge, cloud=cloud, provider=provider)
    return Planner(setting, load_link(link))


def _upstream_planner(given: Profiles, drafter: Bundle, *, model: str, provider: str) -> Planner:
    edge, cloud, link = given.edge_profile, given.cloud_profile, given.link
    if cloud is not None:
        raise InputError("--cloud-profile is a worker's, and what an upstream takes is learnt from its answers")
    if edge is None or link is None:
        raise InputError("planning with an upstream needs both of --edge-profile and --link")

    from cutline.devices.link import load_link
    from cutline.edge.planning.plan_inputs import upstream_setting
    from cutline.edge.planning.planner import Planner

    return Planner(upstream_setting(drafter, model=model, edge=edge, provider=provider), load_link(link))


def agent_opener(
    given: AgentOptions,
    reuse: Reuse = NOTHING_SAID,
    *,
    cuts: bool,
    gate: GateOptions = UNWATCHED,
    journal: EscalationRecorder | None = None,
) -> Callable[[], Agent]:
    """What makes the agent, on the event loop that is to run it; `cuts` says that it may cut without a plan, too.

    All that can be wrong with what was given is raised here: InputError, BundleError.
    """
    from cutline.devices.profile import load_profile
    from cutline.edge.agent import Agent, AgentSettings
    from cutline.edge.audit.audits import check_share
    from cutline.edge.generation.energy import EnergyMeter

    keys, server, device = open_keys(given.keys), given.server, given.profiles.edge_profile
    provider = CPU if given.provider is None else given.provider
    drafter = _open_target_alone(given) if given.no_drafter else open_drafter(given.bundle)
    target = open_target_for(given.target, given.bundle) if cuts or given.profiles.given else None
    planner = open_planner(
        given.profiles, drafter, target, provider=provider, upstream=server.upstream and server.upstream_model
    )
    threads = thread_count(given.threads)
    meter = EnergyMeter() if device is None else EnergyMeter(load_profile(device))
    key = upstream_key(server, workers=bool(given.worker or given.directory))
    check_share(gate.audit)
    audit_spool = _audit_spool(gate)
    if not 0 <= reuse.memory < math.inf:
        raise InputError(f"--memory is {reuse.memory:g}; give seconds, or 0 for none")
    if reuse.fresh and reuse.memory > 0:
        raise InputError("--fresh uses nothing of a question for the next, which --memory does; give one or the other")
    if given.directory is not None and given.worker:
        raise InputError("--directory says which workers there are; give that or --worker")
    return lambda: Agent(
        drafter,
        worker=given.worker or () if given.directory is None else _listed_in(given.directory, drafter, given, keys),
        threads=threads,
        target=target,
        planner=planner,
        keys=keys,
        notice=given.notice,
        settings=AgentSettings(
            upstream=open_upstream(server, key),
            offline=given.offline,
            memory=_memory(reuse.memory),
            fresh=reuse.fresh,
            meter=meter,
            provider=provider,
            audit=gate.audit,
            audit_records=_audit_records() if gate.audit > 0.0 else None,
            audit_spool=audit_spool,
            journal=journal,
        ),
    )


def open_recorder(given: JournalOptions) -> EscalationRecorder | None:
    """What keeps answers in the journal; None where none is given. Raises InputError."""
    if given.journal is None:
        if given.journal_key_file is not None:
            raise InputError("--journal-key-file is the key of a journal; give --journal too")
        return None
    from cutline.cli.amounts import BYTES, amount
    from cutline.core.escalations.folder import EscalationJournal
    from cutline.core.escalations.recorder import EscalationRecorder

    limit, key = amount("--journal-limit", given.journal_limit, BYTES), open_journal_key(given.journal_key_file)
    return EscalationRecorder(EscalationJournal(given.journal, limit=round(limit), key=key))


def open_journal_key(path: Path | None) -> SealingKey | None:
    """The key of a journal in a file, None without one. Raises InputError."""
    return _sealing_key(path, what="journal's key")


def _sealing_key(path: Path | None, *, what: str) -> SealingKey | None:
    if path is None:
        return None
    from cutline.core.storage.envelope import SealingKey
    from cutline.protos.channel.credentials import read_private

    return SealingKey(read_private(path, what=what).decode("ascii", "replace"))


def _open_target_alone(given: AgentOptions) -> Bundle:
    """The target's bundle in place of a drafter's. Raises InputError, BundleError."""
    if given.bundle is not None:
        raise InputError("--no-drafter loads none; give --target, and no --bundle")
    found = open_target_for(given.target, None)
    assert found is not None  # the demo's, if none is given
    return found


def open_upstream(given: UpstreamOptions, key: str | None) -> Upstream | None:
    """The upstream, if one is named; on the event loop that asks it."""
    if given.upstream is None:
        return None
    from cutline.edge.offload.backends.openai_upstream import Upstream

    return Upstream(given.upstream, model=given.upstream_model, key=key)


def upstream_key(given: UpstreamOptions, *, workers: bool) -> str | None:
    """The key of the upstream, if one is named. Raises InputError for what cannot be an upstream, too."""
    url, file = given.upstream, given.upstream_key_file
    if url is None:
        if file is not None:
            raise InputError("--upstream-key-file is the key of an upstream; give --upstream too")
        return None
    if workers:
        raise InputError("an upstream answers in place of workers; give --upstream, or --worker or --directory")
    from cutline.edge.offload.backends.openai_upstream import check_url, open_key

    check_url(url)
    return open_key(file)


def _audit_records() -> Path:
    """The folder for what audits show of drafters. Raises InputError."""
    from cutline.models.hub.library import home

    return home() / "audits"


def _audit_spool(given: GateOptions) -> AuditSpool | None:
    """Where audits wait; None where no folder is given. Raises InputError."""
    if given.audit_spool is None:
        if given.audit_key_file is not None:
            raise InputError("--audit-key-file is the key of a spool of audits; give --audit-spool too")
        return None
    if given.audit == 0.0:
        raise InputError("--audit-spool is where audits wait; give --audit too")
    from cutline.edge.audit.spool import AuditSpool

    return AuditSpool(given.audit_spool, key=_sealing_key(given.audit_key_file, what="key of audits"))


def _memory(seconds: float) -> SemanticCache | None:
    if seconds == 0:
        return None
    from cutline.edge.generation.semantic_cache import SemanticCache

    return SemanticCache(seconds)


def _listed_in(directory: str, drafter: Bundle, given: AgentOptions, keys: AgentKeys) -> ListedWorkers:
    from cutline.edge.offload.discovery import ListedWorkers

    manifest = drafter.manifest
    if (model := manifest.identity if manifest.role == "target" else manifest.target) is None:
        raise BundleError(f"{drafter.path} drafts for no target, so no worker can be found for it")
    return ListedWorkers(directory, model=model, keys=keys, offline=given.offline)


def thread_count(given: int | None) -> int:
    """Threads of the model: what was given, else the cores that this process really has."""
    if given is not None and given < 1:
        raise InputError(f"--threads is {given}; give 1 or more")
    return given or usable_cores()


def open_encoder(path: Path | None, given: AgentOptions) -> Encoder | None:
    """The encoder of the bundle at `path`, None without one, to run as the agent's models do. Raises BundleError."""
    if path is None:
        return None
    from cutline.edge.inference.encoder import Encoder

    path = find_bundle(path, "encoder")
    return Encoder(
        path, threads=thread_count(given.threads), provider=CPU if given.provider is None else given.provider
    )


def open_keys(given: WorkerKeys) -> AgentKeys:
    """What is given to know workers by and to be known by; the token may stand in CUTLINE_TOKEN. Raises InputError."""
    from cutline.protos.channel.credentials import AgentKeys, check_token

    token = os.environ.get("CUTLINE_TOKEN", "") if given.token_file is None else ""
    if token:
        check_token(token, "CUTLINE_TOKEN")
    keys = AgentKeys(ca=given.ca, certificate=given.cert, key=given.key, token=token, token_file=given.token_file)
    keys.check()
    return keys


def open_server_keys(given: ServerTls, client_ca: Path | None = None, revoked: Path | None = None) -> ServerKeys | None:
    """What a server is to be known by, None where nothing is given. Raises InputError."""
    from cutline.protos.channel.credentials import ServerKeys

    cert, key = given.tls_cert, given.tls_key
    if (cert is None) != (key is None):
        raise InputError("--tls-cert and --tls-key go together; give both")
    if client_ca is not None and cert is None:
        raise InputError("--client-ca needs --tls-cert and --tls-key")
    if revoked is not None and client_ca is None:
        raise InputError("--revoked is about certificates of --client-ca; give that too")
    if cert is None or key is None:
        return None
    return ServerKeys(certificate=cert, key=key, client_ca=client_ca, revoked=revoked)


def open_admission(given: Admission, listen: str) -> ServerKeys | None:
    """What who listens at `listen` (HOST:PORT) for a worker's callers is to be known by. Raises InputError."""
    keys = open_server_keys(given.tls, given.client_ca, given.revoked)
    secured = keys is not None and (given.tokens is not None or given.client_ca is not None)
    needs = "--tls-cert, --tls-key, and --tokens or --client-ca"
    check_listen(listen, secured=secured, insecure=given.insecure, needs=needs)
    return keys


def check_listen(listen: str, *, insecure: bool, secured: bool = False, needs: str = "TLS and tokens") -> None:
    """That who listens at `listen` (HOST:PORT) is `secured`, which `needs` those options, or serves this machine alone.

    The latter only if that is said to be wanted: other people may work on this machine, too. Raises InputError.
    """
    host, _ = parse_address(listen)
    if not is_loopback(host):
        if insecure:
            raise InputError(f"--insecure is for this machine's own addresses, not for {host}; give {needs}")
        if not secured:
            raise InputError(f"{host} can be reached from outside; give {needs}: `cutline keys init` makes them")
    elif not (secured or insecure):
        raise InputError(f"give {needs}, or --insecure to serve whoever asks on this machine, in plain text")


def check_free(listen: str, what: str) -> None:
    """That `what` can listen at HOST:PORT now, before anything that takes its time is done. Raises InputError."""
    import socket

    host, port = parse_address(listen)
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in found:
            with socket.socket(family, kind, protocol) as trial:
                # As who listens there does: ports of connections that have just ended are free.
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(address)
    except OSError:
        raise InputError(f"cannot {what} at {listen}: taken, or not an address of this machine") from None


def check_metrics(listen: str, *, secured: bool) -> None:
    """That metrics are shown at HOST:PORT to this machine, or over TLS to who has a certificate. Raises InputError.

    They tell how much, not of whom or what, so on this machine they need no flag.
    """
    host, _ = parse_address(listen)
    if not (secured or is_loopback(host)):
        raise InputError(f"metrics at {host} could be read from outside; give --tls-cert, --tls-key and --client-ca")
