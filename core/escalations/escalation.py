"""An escalation: a question that the target answered, with all that a drafter can learn from it, as bytes."""

from __future__ import annotations

import msgspec

from cutline.core.conversation import Message
from cutline.core.json_errors import UNREADABLE
from cutline.core.request import MAX_IMAGE_BYTES
from cutline.core.sampling import Sampling
from cutline.core.storage.envelope import Envelope, SealingKey
from cutline.errors import CutlineError

MAX_ENTRY_BYTES = MAX_IMAGE_BYTES + (4 << 20)
ENVELOPE = Envelope("escalation", "journal", "--journal-key-file")

Likeliest = tuple[tuple[int, float], ...]  # tokens, and the natural logarithm of the probability of each


class Escalation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question to the target and its answer.

    At `time`, in seconds since 1970, a question of `tenant` ("" where nobody is known) about `images` (contents of
    files) was asked of the model whose identity is `target`, as the tokens `prompt`, and answered with `tokens`; a
    drafter of the identity `drafter` would have begun with `draft`. `likely` has the likeliest tokens in each place, by
    the target's own logits; none where they are not known. `group` is the name of the request's conditions. A worker
    knows neither that, nor the drafter, nor the `messages`.
    """

    time: float
    tenant: str
    target: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    images: tuple[bytes, ...] = ()
    sampling: Sampling = Sampling()
    drafter: str = ""
    draft: tuple[int, ...] = ()
    likely: tuple[Likeliest, ...] = ()
    messages: tuple[Message, ...] = ()
    group: str = ""

    @property
    def plain(self) -> bool:
        """Whether its tokens are the likeliest of the target's own logits: neither drawn, nor penalised, nor masked."""
        return self.sampling.greedy and not self.sampling.penalises

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        texts = sum(len(message.text) for message in self.messages)
        return sum(map(len, self.images)) + texts + 4 * (len(self.prompt) + len(self.tokens) * (1 + 4 * 2)) + 1024


def encode(entry: Escalation, key: SealingKey | None) -> bytes:
    """An entry as a file has it: with a digest, or sealed by a key."""
    return ENVELOPE.close(msgspec.msgpack.encode(entry), key)


def decode(file: bytes, key: SealingKey | None) -> Escalation:
    """The entry in a file. Raises InputError without its key, ValueError if it is torn or none."""
    content = ENVELOPE.open(file, key)
    try:
        return msgspec.msgpack.decode(content, type=Escalation)
    except (*UNREADABLE, CutlineError) as error:  # such as one of another version
        raise ValueError(f"it does not read: {error}") from None
