"""How SmolVLM (and Idefics3 before it) writes an image into a prompt."""

from __future__ import annotations

FAMILY = "smolvlm"
IMAGE, FAKE, GLOBAL = "<image>", "<fake_token_around_image>", "<global-img>"
MARKERS = (IMAGE, FAKE, GLOBAL)


def expand(rows: int, cols: int, tokens: int) -> str:
    """The text that one `<image>` of a rendered template stands for; each tile is `tokens` image tokens.

    (0, 0) is an image in one piece. Otherwise a line per row of tiles, then the whole image after an empty line.
    """
    tile = IMAGE * tokens
    whole = f"{FAKE}{GLOBAL}{tile}{FAKE}"
    if rows == cols == 0:
        return whole
    lines = ("".join(f"{FAKE}<row_{row}_col_{col}>{tile}" for col in range(1, cols + 1)) for row in range(1, rows + 1))
    return "".join(f"{line}\n" for line in lines) + "\n" + whole
