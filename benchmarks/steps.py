"""Time whole training steps, ours beside what they are compared with, in turns in one process.

    python benchmarks/steps.py [--tree matrix gpt2] [--rounds 7] [--only NAME ...] [--torch]

A step is the rule, the optimizer and `apply_updates`, with donated parameters and state; `--torch` adds that of torch
on the same sizes, if it is installed. Prints a Markdown table: medians, their ratio, temporary bytes of our step
as a share of the gradients'. "matrix" is one leaf of 16384 x 4096 numbers, "gpt2" the 148 leaves of GPT-2 small.
"""

import argparse
from collections.abc import Callable
import functools
import importlib
from pathlib import Path
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.compile import shapes
import novoclip

Make = Callable[[], optax.GradientTransformation]
RATE = 1e-3


def adamw(*rules: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return Optax's AdamW after the rules."""
    return optax.chain(*rules, optax.adamw(RATE))


# Ours, what it is compared with, and the largest ratio that is wanted.
PAIRS: dict[str, tuple[Make, Make, str, float]] = {
    "clip_by_global_norm + optax.adamw": (
        lambda: adamw(novoclip.clip_by_global_norm(1.0)),
        lambda: adamw(optax.clip_by_global_norm(1.0)),
        "Optax",
        0.45,
    ),
    "adam(clip=clip_by_global_norm)": (
        lambda: novoclip.adam(RATE, weight_decay=1e-4, clip=novoclip.clip_by_global_norm(1.0)),
        lambda: adamw(novoclip.clip_by_global_norm(1.0)),
        "our rule + optax.adamw",
        1.0,
    ),
    "agc + optax.adamw": (
        lambda: adamw(novoclip.agc(0.01)),
        lambda: adamw(optax.adaptive_grad_clip(0.01)),
        "Optax",
        1.0,
    ),
    "autoclip per tensor + optax.adamw": (
        lambda: adamw(novoclip.autoclip(90.0, per="tensor")),
        lambda: adamw(novoclip.clip_by_global_norm(1.0)),
        "our global norm",
        1.10,
    ),
    "clip_by_second_moment(proportional) + optax.adamw": (
        lambda: adamw(novoclip.clip_by_second_moment(3.0, form="proportional")),
        lambda: novoclip.adam(RATE),
        "our adam",
        1.3,
    ),
    "protect(optax.adamw)": (lambda: novoclip.protect(adamw()), adamw, "optax.adamw", 1.05),
    "watch(optax.adamw), not due": (lambda: novoclip.watch(adamw(), every=10**6), adamw, "optax.adamw", 1.02),
    "watch(optax.adamw, of=all), not due": (
        lambda: novoclip.watch(adamw(), every=10**6, of=["gradients", "updates", "params"]),
        adamw,
        "optax.adamw",
        1.02,
    ),
    "watch(optax.adamw), due": (lambda: novoclip.watch(adamw(), every=1), adamw, "optax.adamw", 2.0),
    "guard_nonfinite(optax.adamw)": (
        lambda: novoclip.guard_nonfinite(adamw()),
        lambda: optax.apply_if_finite(adamw(), 5),
        "apply_if_finite",
        1.0,
    ),
    "momentum": (lambda: novoclip.momentum(RATE), lambda: optax.sgd(RATE, 0.9), "Optax", 1.05),
    "adagrad": (lambda: novoclip.adagrad(RATE), lambda: optax.adagrad(RATE), "Optax", 1.05),
    "rmsprop": (lambda: novoclip.rmsprop(RATE), lambda: optax.rmsprop(RATE), "Optax", 1.05),
    "adam": (lambda: novoclip.adam(RATE), lambda: optax.adam(RATE), "Optax", 1.05),
    "adam(nonfinite='propagate')": (
        lambda: novoclip.adam(RATE, nonfinite="propagate"),
        lambda: optax.adam(RATE),
        "Optax",
        1.05,
    ),
    "amsgrad": (lambda: novoclip.amsgrad(RATE), lambda: optax.amsgrad(RATE), "Optax", 1.05),
    "novograd": (lambda: novoclip.novograd(RATE), lambda: optax.novograd(RATE), "Optax", 1.05),
    "novoclip": (novoclip.novoclip, lambda: novoclip.adam(RATE), "our adam", 1.3),
    "novoclip(threshold='proportional')": (
        lambda: novoclip.novoclip(threshold="proportional"),
        lambda: novoclip.adam(RATE),
        "our adam",
        1.3,
    ),
}
TREES = {"matrix": [(16384, 4096)], "gpt2": shapes(148)}


class Running:
    """A step of an optimizer, with its parameters and state."""

    def __init__(self, optimizer: optax.GradientTransformation, params: Any) -> None:
        """Compile the step."""

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params: Any, state: Any, gradients: Any) -> Any:
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        self.optimizer, self.params = optimizer, params
        self.compiled = step.lower(params, jax.eval_shape(optimizer.init, params), params).compile()

    def seconds(self, gradients: Any, steps: int) -> list[float]:
        """Return the seconds that steps took, after one that is not counted."""
        moving, state = jax.tree.map(jnp.copy, self.params), jax.jit(self.optimizer.init)(self.params)
        found = []
        for _ in range(steps + 1):
            start = time.perf_counter()
            moving, state = jax.block_until_ready(self.compiled(moving, state, gradients))
            found.append(time.perf_counter() - start)
        return found[1:]


def torch_seconds(sizes: list[tuple[int, ...]], steps: int) -> list[float]:
    """Return the seconds of torch's `clip_grad_norm_` and its fused AdamW on parameters of these sizes."""
    torch = importlib.import_module("torch")
    params = [torch.nn.Parameter(torch.ones(size)) for size in sizes]
    for param in params:
        param.grad = torch.full_like(param, 1e-3)
    optimizer = torch.optim.AdamW(params, lr=RATE, fused=True)
    found = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        found.append(time.perf_counter() - start)
    return found[1:]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", nargs="+", choices=list(TREES), default=list(TREES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of the names of steps")
    parser.add_argument("--torch", action="store_true")
    options = parser.parse_args()
    names = [name for name in PAIRS if any(part in name for part in options.only)]
    if not names:
        parser.error(f"--only {' '.join(options.only)} matches no step; the steps are {', '.join(PAIRS)}")
    print(f"jax {jax.__version__}, optax {optax.__version__}, {jax.devices()[0].device_kind}\n")
    print("| step | leaves | ours, ms | other, ms | ratio | at most | compared with | temporaries |")
    print("|---|---|---|---|---|---|---|---|")
    for tree in options.tree:
        params = {f"leaf_{i}": jnp.ones(shape) for i, shape in enumerate(TREES[tree])}
        gradients = jax.tree.map(lambda leaf: leaf * 1e-3, params)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        for name in names:
            ours, other, beside, most = PAIRS[name]
            pair = [Running(make(), params) for make in (ours, other)]
            found: list[list[float]] = [[], []]
            for _ in range(options.rounds):
                for k, running in enumerate(pair):
                    found[k] += running.seconds(gradients, 3)
            one, two = (statistics.median(seconds) * 1e3 for seconds in found)
            temporary = pair[0].compiled.memory_analysis().temp_size_in_bytes / size
            print(
                f"| {name} | {tree} | {one:.1f} | {two:.1f} | {one / two:.2f} | {most} | {beside} | {temporary:.2f} |",
                flush=True,
            )
        if options.torch:
            running, mine, theirs = Running(adamw(novoclip.clip_by_global_norm(1.0)), params), [], []
            for _ in range(options.rounds):
                mine += running.seconds(gradients, 3)
                theirs += torch_seconds(TREES[tree], 3)
            one, two = statistics.median(mine) * 1e3, statistics.median(theirs) * 1e3
            name = "clip_by_global_norm + optax.adamw"
            print(f"| {name} | {tree} | {one:.1f} | {two:.1f} | {one / two:.2f} | 1.0 | torch | - |")


if __name__ == "__main__":
    main()
