"""What a draft that is partly wrong costs where states do not rewind: `python -m cutline.bench.rejected_drafts`.

Two models of Qwen3.5 0.8B's widths, fewer layers and seeded weights: one as it is, most of whose layers keep a state,
and one with attention in all of them, which rewinds. Each runs passes of a row and four drafted ones in turn: with all
drafts right, and with two of them wrong. What being wrong costs is the ratio of the two, as both have the same rows; it
is printed for either model, and what that of the first is times that of the second: 1.3 at the most, or exit with 1.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from cutline.cloud.model.batch import NobodysRows
from cutline.cloud.model.model_runner import Capacity, Target
from cutline.models.bundle import Bundle, write_manifest
from cutline.models.export.source import read_source
from cutline.testing.models.small_models import SMALL

PROMPT, DRAFTED, RIGHT = 64, 4, 2
MOST = 1.3
LAYERS = 8


def target(folder: Path, layer_types: list[str], context: int) -> Target:
    """A worker's target with these types of layers."""
    text = {
        "hidden_size": 1024,
        "intermediate_size": 3584,
        "num_attention_heads": 8,
        "head_dim": 256,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 16,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "layer_types": layer_types,
        "max_position_embeddings": context,
    }
    rope = {"mrope_section": [11, 11, 10]}
    SMALL["qwen3.5"].smaller(rope=rope, text_config=text, vision_config={"out_hidden_size": 1024}).write(folder)
    source = read_source(folder)
    manifest = source.manifest(name="bench", role="target", precision="fp32", target=None)
    for name, content in source.companions.items():
        (folder / name).write_bytes(content)
    return Target(Bundle(folder, write_manifest(folder, manifest)), Capacity(slots=1, context=context))


def seconds(model: Target, *, right: int, rounds: int) -> float:
    """The median of passes with so many of the drafted rows `right`."""
    start, taken = PROMPT, list[float]()
    model.run([NobodysRows(0, 0, (0,) * PROMPT, wanted=1, axes=3)], [None])
    for _ in range(rounds):
        rows = NobodysRows(0, start, (0,) * (1 + DRAFTED), wanted=1 + DRAFTED, axes=3, drafted=DRAFTED)
        began = time.perf_counter()
        model.run([rows], [None])
        taken.append(time.perf_counter() - began)
        start += 1 + right
    return statistics.median(taken)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="passes of each kind in each of five turns")
    args = parser.parse_args()
    context = PROMPT + (1 + DRAFTED) * (args.rounds + 1)
    states = (["linear_attention"] * 3 + ["full_attention"]) * (LAYERS // 4)
    with tempfile.TemporaryDirectory() as place:
        models = {
            "states": target(Path(place) / "states", states, context),
            "keys": target(Path(place) / "keys", ["full_attention"] * LAYERS, context),
        }
    found: dict[str, list[float]] = {name: [] for name in models}
    about = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    processor = next((line.partition(": ")[2] for line in about.splitlines() if line.startswith("model name")), "?")
    print(f"{processor}, {torch.get_num_threads()} threads, {DRAFTED} drafted rows, {RIGHT} of them right")
    for _ in range(5):  # in turn, as the machine may have other work
        for name, model in models.items():
            all_right = seconds(model, right=DRAFTED, rounds=args.rounds)
            some_wrong = seconds(model, right=RIGHT, rounds=args.rounds)
            found[name].append(some_wrong / all_right)
            print(f"{name}: {all_right * 1e3:.1f} ms with all right, {some_wrong * 1e3:.1f} ms with some wrong")
    states_cost, keys_cost = (statistics.median(ratios) for ratios in found.values())
    ratio = states_cost / keys_cost
    print(
        f"wrong ones cost {states_cost:.2f} with states, {keys_cost:.2f} with keys: {ratio:.2f} times (at most {MOST})"
    )
    sys.exit(0 if ratio <= MOST else 1)


if __name__ == "__main__":
    main()
