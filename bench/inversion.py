"""An attacker who sees boundaries: a network that learns to paint the picture that a boundary was made of.

It knows the model, and has pictures of the same kind with their boundaries, as whoever runs a worker could make them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

WIDTH = 192
BATCH = 50
RIDGE = 1e-4  # of a row's variance


class Painter(nn.Module):
    """From boundary rows (n, rows, width) to pictures (n, 3, side, side) in 0..1: each row a square of the picture.

    It begins as the best linear guess at each square from its own row, by `seen` and the `pictures` those are of. What
    is left is learnt: two layers of attention let rows that know of other squares say so.
    """

    def __init__(self, seen: Tensor, pictures: Tensor) -> None:
        super().__init__()
        _, rows, width = seen.shape
        self.grid = math.isqrt(rows)
        self.square = pictures.shape[-1] // self.grid
        self.mean = seen.mean(dim=0)
        self.spread = seen.std(dim=(0, 1)).clamp_min(1e-6)
        squares = self._squares(pictures)
        self.usual = squares.mean(dim=0)
        known = ((seen - self.mean) / self.spread).flatten(0, 1)
        ridge = RIDGE * len(known) * torch.eye(width)
        self.direct = torch.linalg.solve(known.T @ known + ridge, known.T @ (squares - self.usual).flatten(0, 1))
        self.enter = nn.Linear(width, WIDTH)
        self.place = nn.Parameter(torch.zeros(rows, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.look = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.leave = nn.Linear(WIDTH, 3 * self.square**2)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, rows: Tensor) -> Tensor:
        """The pictures, not yet held within 0..1."""
        known = (rows - self.mean) / self.spread
        found: Tensor = known @ self.direct + self.usual + self.leave(self.look(self.enter(known) + self.place))
        squares = found.unflatten(-1, (3, self.square, self.square)).unflatten(1, (self.grid, self.grid))
        painted: Tensor = squares.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        return painted

    def _squares(self, pictures: Tensor) -> Tensor:
        """The squares (n, rows, 3 * square * square) of pictures."""
        parts: Tensor = pictures.unflatten(3, (self.grid, self.square)).unflatten(2, (self.grid, self.square))
        return parts.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def learn(
    seen: Tensor,
    pictures: Tensor,
    *,
    steps: int,
    seed: int,
    advance: Callable[[], None],
    blur: Callable[[Tensor], Tensor] = lambda rows: rows,
) -> Painter:
    """A painter that has learnt to make `pictures` (n, 3, side, side) of `seen` (n, rows, width) in so many `steps`.

    `blur` is done to rows anew each time they are learnt from: an attacker has as much noise as he wants.
    """
    torch.manual_seed(seed)
    painter = Painter(blur(seen), pictures)
    optimizer = torch.optim.AdamW(painter.parameters(), lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(seen), (BATCH,))
        loss = nn.functional.mse_loss(painter(blur(seen[chosen])), pictures[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        advance()
    return painter.eval()


@torch.inference_mode()
def paint(painter: Painter, rows: Tensor) -> Tensor:
    """The pictures (n, 3, side, side) in 0..1 that a painter makes of boundaries."""
    return torch.cat([painter(some) for some in rows.split(BATCH)]).clamp(0, 1)
