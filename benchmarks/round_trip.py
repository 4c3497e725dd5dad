"""A training recorded by `watch`, replayed, and trained again with what is recommended: docs/round_trip.md.

    python benchmarks/round_trip.py [--steps 600] [--seeds 3] [--rates 1e-3 3e-3 1e-2]

The model, its text and the storm are those of examples/train_lm.py. At each learning rate Adam is trained without a
clip, and its norms and losses are written to a JSONL file. `novoclip.replay` reads the file of seed 0 and recommends a
line. Then all seeds are trained with that line, and with `clip_by_global_norm(1.0)`.
"""

import argparse
from pathlib import Path
import statistics
import sys
import tempfile
from typing import Any

import jax
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from storm_training import Task, make_faults
from train_lm import read_text

import novoclip
from novoclip.replays.judge import CAUGHT, judged


def trained(
    task: Task, optimizer: Any, seed: int, steps: int, path: Path | None
) -> tuple[float, np.ndarray, np.ndarray]:
    """Train in the storm; return the validation loss, and the norm before and after the clip of each step."""
    faults = make_faults(steps, stormed=True)
    transform = optax.named_chain(("seen", novoclip.record()), ("optimizer", novoclip.watch(optimizer, every=50)))

    @jax.jit
    def update(params: Any, state: Any, gradients: Any, loss: jax.Array) -> Any:
        updates, state = transform.update(gradients, state, params, value=loss)
        return optax.apply_updates(params, updates), state, {"loss": loss} | novoclip.metrics(state)

    params = task.init(seed)
    state, seen, passed, skipped = transform.init(params), [], [], 0
    log = novoclip.writer(path) if path else None
    for step in range(steps):
        loss, gradients = task.gradients(
            params, seed, step, faults.scale[step], faults.random_targets[step], per_example=False
        )
        params, state, report = update(params, state, gradients, loss)
        seen.append(float(report["clip/seen/norm"]))
        now = sum(int(count) for name, count in report.items() if name.endswith("/skipped"))
        # A step that a guard skips does not reach the record inside.
        inside = next(float(norm) for name, norm in report.items() if name.endswith("passed/norm"))
        passed.append(0.0 if now > skipped else inside)
        skipped = now
        if log:
            log.write(step, {"loss": report["loss"], "grad_norm": report["clip/seen/norm"]})
    if log:
        log.close()
    return float(task.validate(params)), np.array(seen), np.array(passed)


def with_line(line: str | None, rate: float) -> Any:
    """Return Adam with a line of Python around it or before it, and a record of what reaches it."""
    optimizer = optax.named_chain(("passed", novoclip.record()), ("adam", optax.adam(rate)))
    if line is None:
        return optimizer
    made = eval(line, {"novoclip": novoclip, "optimizer": optimizer})
    return made if "(optimizer" in line else optax.chain(made, optimizer)


def row(rate: float, line: str | None, results: list[tuple[float, np.ndarray, np.ndarray]]) -> str:
    """Return a row of the table: losses, and the spikes that were let through of all."""
    losses = [loss for loss, _, _ in results]
    spikes = let = 0
    for _, seen, passed in results:
        rows = judged(seen)
        spikes += int(rows.spike.sum())
        let += int((rows.spike & (passed >= CAUGHT * rows.level)).sum())
    shown, name = " ".join(f"{loss:.3f}" for loss in losses), f"`{line}`" if line else "no clip"
    return f"| {rate:g} | {name} | {statistics.mean(losses):.3f} | {shown} | {let} of {spikes} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-3, 1e-2])
    options = parser.parse_args()
    task = Task(read_text(parser, None)[0])
    print("| learning rate | rule | validation loss | of each seed | spikes let through |\n|---|---|---|---|---|")
    for rate in options.rates:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "norms.jsonl"
            alone = [
                trained(task, with_line(None, rate), seed, options.steps, None if seed else path)
                for seed in range(options.seeds)
            ]
            answer = novoclip.replay(path)
        print(row(rate, None, alone), flush=True)
        found = answer.recommended.line if answer.recommended else None
        for line in ("novoclip.clip_by_global_norm(1.0)", found):
            if line is None:
                print(f"| {rate:g} | nothing is recommended: {'; '.join(answer.warnings)} | | | |", flush=True)
                continue
            results = [trained(task, with_line(line, rate), seed, options.steps, None) for seed in range(options.seeds)]
            print(row(rate, line, results), flush=True)


if __name__ == "__main__":
    main()
