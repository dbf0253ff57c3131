"""All backends of an agent, and who of them can be asked what."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from cutline.core.agreement.measures import Wording
from cutline.core.request import Mode, Request
from cutline.edge.audit.audits import Audits
from cutline.edge.generation.gate import Gate, open_gate
from cutline.edge.generation.generation import Execution, Prepared
from cutline.edge.generation.result import Decision, Gated
from cutline.edge.offload.backends.device_models import DeviceModels
from cutline.edge.offload.backends.worker_backend import WorkerContact
from cutline.errors import InputError
from cutline.models.bundle import Bundle
from cutline.models.vocabulary import Vocabulary

if TYPE_CHECKING:  # an agent without one loads no HTTP client
    from cutline.edge.offload.backends.openai_upstream import Upstream
    from cutline.edge.offload.backends.upstream_backend import UpstreamBackend


@dataclass(eq=False, kw_only=True)
class Backends:
    """Who answers an agent's requests: its own `models`, workers by their `contact`, or an `upstream` in their place.

    `vocabulary` is that of the answers. What the gate kept so far was checked by `audits`.
    """

    drafter: Bundle | None
    models: DeviceModels
    contact: WorkerContact
    upstream: Upstream | None
    vocabulary: Vocabulary
    audits: Audits = field(default_factory=Audits)

    def with_drafter(self, drafter: Bundle) -> Backends:
        """The same with another drafter, of whose answers none is kept before the target's have shown that it may be.

        It is loaded here. What is under way goes on with these. Raises BundleError, InputError.
        """
        audits = Audits(share=self.audits.share, seed=self.audits.seed, unproven=True)
        return replace(self, drafter=drafter, models=self.models.with_drafter(drafter), audits=audits)

    def said(self, group: str, decision: Decision) -> Gated:
        """What the gate says of an answer to a request of a group, having decided so."""
        return msgspec.structs.replace(self.gate.said(group, decision), audit=self.audits.said(group, self.gate))

    @cached_property
    def gate(self) -> Gate:
        """What may keep the drafter's answers: none of them where it is not calibrated for who answers otherwise.

        Raises BundleError.
        """
        if self.drafter is None or self.drafter.manifest.calibration is None:
            return Gate({})
        return open_gate(self.drafter).before(None if self.upstream is None else self.upstream.model)

    @property
    def calibration(self) -> str:
        """What drafter, target and calibration the gate is of: a name of nothing else."""
        manifest = self.contact.served if self.drafter is None else self.drafter.manifest
        made = msgspec.json.encode(manifest.calibration, order="sorted")
        return f"{manifest.identity} {manifest.target} {hashlib.sha256(made).hexdigest()}"

    def worded(self, tokens: Sequence[int]) -> Wording:
        """An answer of these tokens, as it is compared with others."""
        return Wording(self.vocabulary.decode(tokens).strip(), tuple(tokens))

    @property
    def remote(self) -> bool:
        """Whether anybody but this device was named."""
        workers = self.contact.workers
        return bool(workers.addresses or workers.nobody or self.upstream)

    @property
    def reachable(self) -> bool:
        """Whether there is such a one that may be asked now."""
        if self.upstream is None:
            return self.contact.workers.reachable
        return self.upstream.reachable and not self.contact.workers.offline

    def check_gate(self) -> None:
        """Raises BundleError for a drafter that is not calibrated, where nobody else was named, either.

        Raises InputError where there is no drafter.
        """
        if self.remote:
            return
        if self.drafter is None:
            raise InputError("there is neither a drafter nor a worker; give --worker HOST:PORT, or a drafter's bundle")
        if self.drafter.manifest.calibration is None:
            open_gate(self.drafter)

    def check(self, request: Request) -> None:
        """Raises InputError where nobody was named for such a request, BundleError where nobody is for the drafter."""
        if not (self.remote or self.contact.workers.offline) and request.mode is not Mode.AUTO:
            raise InputError(f"mode {request.mode} needs a worker; give --worker HOST:PORT, or use --mode edge")
        if self.upstream is None:
            self.contact.check()

    def upstream_backend(self, prepared: Prepared, execution: Execution, *, seconds: float) -> UpstreamBackend:
        """The upstream for a request. Raises InputError for one that it cannot be asked."""
        from cutline.edge.offload.backends.upstream_backend import UpstreamBackend

        assert self.upstream is not None
        stop = self.contact.served.stop_tokens[0]
        return UpstreamBackend(self.upstream, prepared, execution, self.vocabulary, stop=stop, seconds=seconds)
