"""The two models that `cutline plan` plans for: bundles, or shapes of models that nobody has exported yet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cutline.core.conversation import question
from cutline.demo.bundles import DRAFTER, TARGET
from cutline.devices.names import nearest
from cutline.edge.planning.plan_inputs import setting_of, setting_of_shapes
from cutline.errors import BundleError, InputError
from cutline.models.bundle import Bundle, Manifest, part_at
from cutline.models.families import Grid
from cutline.models.hub.library import BundleRole, find_bundle
from cutline.models.prompt import PromptBuilder
from cutline.models.shapes import Shape, known_shapes, load_shape
from cutline.partitioner.setting import Setting

WORDS = "What is there to see in the picture?"  # the question planned for, where nobody says how long it is
WORD_TOKENS = 32  # what that question and a chat template take, where there is no tokenizer to count them
_TOKEN = re.compile(r"<[^<>]+>|\n+")  # in what stands for an image in a prompt


@dataclass(frozen=True, slots=True)
class PlannedModels:
    """The manifests of a drafter and its target; `bundles` are theirs, None where they are shapes.

    `dtype` is that of a worker's weights of a shape.
    """

    drafter: Manifest
    target: Manifest
    bundles: tuple[Bundle, Bundle] | None = None
    dtype: str = "fp32"

    @classmethod
    def open(cls, drafter: str | None, target: str | None) -> PlannedModels:
        """Bundles by their folders or names, or shapes by name or TOML file: the demo's where none is given.

        A device's part of a target will do; of one shape alone the other is the same. Raises InputError, BundleError.
        """
        shapes = [None if named is None else load_shape(named) for named in (drafter, target)]
        if any(shapes):
            return cls._of_shapes((drafter, target), shapes)
        named_roles: tuple[tuple[str, str | None, BundleRole], ...]
        named_roles = (("--bundle", drafter, "drafter"), ("--target", target, "target"))
        for option, named, role in named_roles:
            if named is not None and not _bundle(named, role).exists():
                known = known_shapes()
                raise InputError(
                    f"{option} {named} is neither a bundle's folder or name nor a known model{nearest(named, known)}; "
                    f"known are {', '.join(known)}"
                )
        of_target = _bundle(target, "target") if target is not None else TARGET
        of_drafter = _bundle(drafter, "drafter") if drafter is not None else DRAFTER
        opened = Bundle.open(of_drafter), Bundle.open(of_target, part_at(of_target))
        if opened[0].manifest.target != opened[1].manifest.identity:
            raise InputError(f"{opened[0].path} does not draft for {opened[1].path}; give its target with --target")
        return cls(opened[0].manifest, opened[1].manifest, opened)

    @classmethod
    def _of_shapes(cls, named: tuple[str | None, str | None], shapes: list[Shape | None]) -> PlannedModels:
        for name, shape in zip(named, shapes, strict=True):
            if name is not None and shape is None:
                raise InputError(f"{name} is no shape of a model and the other is; give two shapes or two bundles")
        given = [(Path(name).name, shape) for name, shape in zip(named, shapes, strict=True) if name and shape]
        (small_name, small), (big_name, big) = given[0], given[-1]
        if not small.family.is_alike(big.family):
            raise InputError(f"{small_name} does not draft for {big_name}: they prepare images differently")
        target = big.manifest(big_name, role="target", precision="fp32")
        drafter = small.manifest(small_name, role="drafter", precision="int8", target=target.identity)
        return cls(drafter, target, dtype=big.dtype)

    @property
    def is_demo(self) -> bool:
        """Whether the drafter is the demo's."""
        return self.bundles is not None and self.bundles[0].path == DRAFTER

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the plan should know of the models."""
        sizes = "of the models only the sizes are known: nothing of them was run, and acceptance is an assumption"
        return () if self.bundles is not None else (sizes,)

    def setting(self, *, edge: str, cloud: str, provider: str, wants_gate: bool) -> Setting:
        """The two on machines of these profiles. Raises ProfileError, BundleError."""
        if self.bundles is not None:
            return setting_of(*self.bundles, edge=edge, cloud=cloud, provider=provider, wants_gate=wants_gate)
        return setting_of_shapes(
            self.drafter, self.target, edge=edge, cloud=cloud, provider=provider, cloud_dtype=self.dtype
        )

    def prompt_tokens(self, grid: Grid) -> int:
        """Tokens of a short question about an image that became `grid`."""
        if self.bundles is not None:
            return len(PromptBuilder.open(self.bundles[0]).build([question(WORDS)], [grid]).ids)
        return len(_TOKEN.findall(self.target.family.expand(grid, 0))) + WORD_TOKENS


def _bundle(named: str, role: BundleRole) -> Path:
    """The bundle of that folder or name, or a path where there is none."""
    try:
        return find_bundle(Path(named), role)
    except BundleError:
        return Path(named)
