"""Train the language model of examples/train_lm.py by NovoClip, with either threshold, through the storm.

    python benchmarks/novoclip_thresholds.py

The gradients are also multiplied by 0.001 and by 1000, as a loss scale or a sum over a batch would do.
"""

from pathlib import Path
from pydoc_data.topics import topics
import sys

import optax

import novoclip

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from storm_rules import Rule
from storm_training import Task, final_loss, make_optimizer

CASES = (
    [("inverse", c, 1.0) for c in (1e-4, 1e-2, 1.0, 100.0)]
    + [("inverse", 1e-2, scale) for scale in (1e-3, 1e3)]
    + [("proportional", k, 1.0) for k in (1.5, 3.0, 10.0)]
    + [("proportional", 3.0, scale) for scale in (1e-3, 1e3)]
)


def main() -> None:
    """Print one row a case."""
    task = Task("\n".join(topics.values()))
    print("| threshold | clipping | gradients times | clean | stormed |\n|---|---|---|---|---|", flush=True)
    for threshold, clipping, scale in CASES:
        descent = novoclip.novoclip(3e-3, clipping=clipping, threshold=threshold, bias_correction=True)
        rule = Rule("scale", {"step_size": scale}, optax.scale)
        optimizer = make_optimizer(rule, descent)
        losses = [final_loss(task, rule, optimizer, stormed=stormed) for stormed in (False, True)]
        print(f"| {threshold} | {clipping:g} | {scale:g} | {losses[0]:.3f} | {losses[1]:.3f} |", flush=True)


if __name__ == "__main__":
    main()
