from __future__ import annotations

import msgspec

from cutline.demo.bundles import TARGET
from cutline.demo.cards import Split
from cutline.demo.reference import Reference
from cutline.demo.requests import requests
from cutline.models.bundle import Bundle


def test_an_answer_ends_at_the_manifests_stop_tokens() -> None:
    bundle = Bundle.open(TARGET)
    request = next(iter(requests(Split.EVALUATION, 1, seed=3)))
    (stop,) = bundle.manifest.stop_tokens
    answer = Reference(bundle).answer(request.image, request.question.text)
    assert answer.index(stop) == len(answer) - 1
    # <fake_token_around_image>, that no answer has: config.json's own end no longer counts.
    other = Bundle(TARGET, msgspec.structs.replace(bundle.manifest, stop_tokens=(4,)))
    longer = Reference(other).answer(request.image, request.question.text, max_tokens=len(answer) + 3)
    assert len(longer) == len(answer) + 3
    assert longer[: len(answer)] == answer
