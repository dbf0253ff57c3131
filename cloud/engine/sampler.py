"""From logits to tokens, and to how likely they were."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from cutline.cloud.engine.sessions.session import Session
from cutline.cloud.engine.sessions.session_rows import SessionRows
from cutline.models.law.penalties import NO_PENALTIES, Past
from cutline.models.law.sampling import choose
from cutline.protos.messages import Likelihood


def choose_all(rows: SessionRows, logits: torch.Tensor, stop_tokens: Collection[int]) -> list[int]:
    """The tokens that `logits` (wanted, vocabulary) give, to the first that is not the drafted one at the least.

    A GPU has run the pass when they are here, not before.
    """
    request = rows.session.request
    sampling, past = request.sampling, None
    if (request.penalties != NO_PENALTIES or sampling.penalises) and len(logits):
        past = _past(rows.session, logits[0], stop_tokens)
    elif sampling.greedy:
        greedy: list[int] = logits.argmax(-1).tolist()  # one copy from the device instead of one a row
        return greedy
    after = rows.start + len(rows.tokens) - rows.drafted
    drafted, chosen = rows.tokens[len(rows.tokens) - rows.drafted :], list[int]()
    for index, row in enumerate(logits):
        left = row if past is None else past.penalised(row)
        chosen.append(choose(left, sampling, after + index, xp=torch))
        if index == rows.drafted or chosen[-1] != drafted[index]:  # what comes after it followed another token
            break
        if past is not None:
            past.extend(chosen[-1:])
    return chosen


def _past(session: Session, like: torch.Tensor, stop_tokens: Collection[int]) -> Past:
    """The confirmed tokens of a session, as its penalties see them."""
    past, prompt = session.past, session.request.prompt_length
    # A pass that broke after its tokens were chosen left more there than it confirmed.
    if past is None or len(past.tokens) > len(session.tokens):
        past = session.past = Past(
            session.request.penalties,
            session.tokens[:prompt],
            sampling=session.request.sampling,
            matcher=None if session.request.compiled is None else session.request.compiled.matcher(),
            first=prompt,
            stop_tokens=stop_tokens,
            like=like,
            xp=torch,
        )
    past.extend(session.tokens[len(past.tokens) :])
    return past


def likelihoods(logits: torch.Tensor, chosen: Sequence[int], alternatives: int) -> list[Likelihood]:
    """How likely the tokens `chosen` from `logits` (n, vocabulary) were at temperature 1, and the likeliest others."""
    logs = logits.float().log_softmax(-1)
    of = logs.gather(1, torch.tensor(chosen, device=logs.device)[:, None])[:, 0].tolist()
    best = logs.topk(min(alternatives, logs.shape[1]))
    told = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        Likelihood(one, tuple(zip(tokens, values, strict=True))) for one, (tokens, values) in zip(of, told, strict=True)
    ]
