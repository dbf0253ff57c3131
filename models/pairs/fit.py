"""Whether two bundles are a pair that can run, before anything of them runs."""

from __future__ import annotations

from dataclasses import dataclass

from cutline.models.bundle import Bundle
from cutline.models.pairs.pair import Shared, companions, shared_by


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFit:
    """What a drafter and a target share; `why` they cannot run together as they are, and what to do, if so."""

    drafter: str
    target: str
    shared: Shared
    told: str
    follows: tuple[str, ...]
    why: str | None

    @property
    def runs(self) -> bool:
        """Whether the two can run together."""
        return self.why is None


def fit(drafter: Bundle, target: Bundle) -> PairFit:
    """How two bundles go together, by their manifests, tokenizers and templates. Raises BundleError."""
    shared = shared_by(drafter.manifest, companions(drafter), target.manifest, companions(target))
    return PairFit(
        drafter=drafter.manifest.name,
        target=target.manifest.name,
        shared=shared,
        told=shared.told,
        follows=shared.follows,
        why=_misfit(drafter, target, shared),
    )


def _misfit(drafter: Bundle, target: Bundle, shared: Shared) -> str | None:
    ours, theirs = drafter.manifest, target.manifest
    if theirs.role != "target":
        return f"{target.path} holds a {theirs.role}; export the model with --role target"
    if ours.role != "drafter":
        return f"{drafter.path} holds a {ours.role}; export the model with --role drafter --target {target.path}"
    if shared.prompt and ours.decoder.context < theirs.decoder.context:
        return (
            f"{drafter.path} holds {ours.decoder.context} tokens, its target {theirs.decoder.context}, and reads the "
            "same prompts; take a drafter that holds as many"
        )
    if ours.target != theirs.identity:
        made = "no target" if ours.target is None else "another target"
        return f"{drafter.path} was made for {made}; export it again with --target {target.path}"
    return None
