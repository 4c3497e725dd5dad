"""What tracing, lowering and compiling a training step costs, beside the same task in Optax.

    python benchmarks/compile.py [--leaves 148 500 2000] [--runs 3] [--only NAME ...]

Each pair is measured in a process of its own, pair by pair in turn, without a compilation cache. Prints a Markdown
table: median CPU seconds (user and system, all threads) of ours and of Optax's, their ratio, the ratio of tracing
alone, and StableHLO operations and distinct fusions of both. 148 leaves are GPT-2 small's.
"""

import argparse
from collections.abc import Callable
import json
from pathlib import Path
import re
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

sys.path.insert(0, str(Path(__file__).parent.parent))
import novoclip

Make = Callable[[], optax.GradientTransformation]


def adam(*rules: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return Optax's Adam after the rules."""
    return optax.chain(*rules, optax.adam(1e-3))


PAIRS: dict[str, tuple[Make, Make]] = {
    "clip_by_global_norm + optax.adam": (
        lambda: adam(novoclip.clip_by_global_norm(1.0)),
        lambda: adam(optax.clip_by_global_norm(1.0)),
    ),
    "clip_by_norm per tensor + optax.adam": (
        lambda: adam(novoclip.clip_by_norm(1.0)),
        lambda: adam(optax.clip_by_block_rms(1.0)),
    ),
    "autoclip per tensor + optax.adam": (
        lambda: adam(novoclip.autoclip(90.0, per="tensor")),
        lambda: adam(optax.clip_by_block_rms(1.0)),
    ),
    "zclip per tensor + optax.adam": (
        lambda: adam(novoclip.zclip(per="tensor")),
        lambda: adam(optax.clip_by_block_rms(1.0)),
    ),
    "adagc + optax.adam": (lambda: adam(novoclip.adagc()), lambda: adam(optax.clip_by_block_rms(1.0))),
    "agc + optax.adam": (lambda: adam(novoclip.agc(0.01)), lambda: adam(optax.adaptive_grad_clip(0.01))),
    "adam": (lambda: novoclip.adam(1e-3), adam),
    "adam(clip=clip_by_global_norm)": (
        lambda: novoclip.adam(1e-3, clip=novoclip.clip_by_global_norm(1.0)),
        lambda: adam(optax.clip_by_global_norm(1.0)),
    ),
    "novograd": (lambda: novoclip.novograd(1e-3), lambda: optax.novograd(1e-3)),
    "skip_spikes(optax.adam)": (lambda: novoclip.skip_spikes(adam()), lambda: optax.apply_if_finite(adam(), 5)),
    "guard_nonfinite(optax.adam)": (
        lambda: novoclip.guard_nonfinite(adam()),
        lambda: optax.apply_if_finite(adam(), 5),
    ),
}


def shapes(leaves: int) -> list[tuple[int, ...]]:
    """Return GPT-2's shapes, over and over until there are so many leaves; parameters are never made."""
    block = [(768,), (768,), (768, 2304), (2304,), (768, 768), (768,), (768,), (768,), (768, 3072), (3072,)]
    block = [*block, (3072, 768), (768,)]
    first = [(50257, 768), (1024, 768), (768,), (768,)]
    return (first + block * (leaves // len(block) + 1))[:leaves]


def prepared(transform: optax.GradientTransformation, leaves: int) -> tuple[Any, tuple[Any, Any, Any]]:
    """Return one step under jit, and the shapes of what it is called with."""

    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = transform.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    params = {f"leaf_{i}": jax.ShapeDtypeStruct(shape, jnp.float32) for i, shape in enumerate(shapes(leaves))}
    state = jax.eval_shape(transform.init, params)
    return jax.jit(step, donate_argnums=(0, 1)), (params, state, params)


def operations(lowered: Any) -> int:
    """Return how many StableHLO operations a program has; what is called often counts once."""
    return len(re.findall(r"^\s+(?:%\S+ = )?\"?stablehlo\.", lowered.as_text(), re.MULTILINE))


def fusions(compiled: Any) -> int:
    """Return how many kernels of a program differ by more than names."""
    bodies = re.findall(r"^%?\S*fused_computation\S* .*?^\}", compiled.as_text(), re.MULTILINE | re.DOTALL)
    names = r"[%.]?[\w-]*\.\d+|%[\w.-]+|metadata=\{[^}]*\}"
    return len({re.sub(names, "", body.split("\n", 1)[-1]) for body in bodies})


def measure(transform: optax.GradientTransformation, leaves: int) -> dict[str, float]:
    """Return CPU seconds of tracing and of all, StableHLO operations and distinct fusions of one step."""
    step, arguments = prepared(transform, leaves)
    start = time.process_time()
    traced = step.trace(*arguments)
    tracing = time.process_time() - start
    lowered = traced.lower()
    compiled = lowered.compile()
    total = time.process_time() - start
    return {
        "tracing": tracing,
        "total": total,
        "operations": operations(lowered),
        "fusions": fusions(compiled),
    }


def in_its_own_process(name: str, ours: bool, leaves: int) -> dict[str, float]:
    """Measure one side of a pair in a new process."""
    command = [sys.executable, __file__, "--measure", name, "ours" if ours else "optax", "--leaves", str(leaves)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def main() -> None:
    """Print the table, or measure one side of one pair."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leaves", type=int, nargs="+", default=[148, 500])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of the names of steps")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        name, side = options.measure
        print(json.dumps(measure(PAIRS[name][0 if side == "ours" else 1](), options.leaves[0])))
        return
    names = [name for name in PAIRS if any(part in name for part in options.only)]
    if not names:
        parser.error(f"--only {' '.join(options.only)} matches no step; the steps are {', '.join(PAIRS)}")
    print(f"jax {jax.__version__}, optax {optax.__version__}, {jax.default_backend()}\n")
    print("| step | leaves | ours, s | Optax, s | ratio | tracing | operations | distinct fusions |")
    print("|---|---|---|---|---|---|---|---|")
    for leaves in options.leaves:
        for name in names:
            runs = [[in_its_own_process(name, ours, leaves) for ours in (True, False)] for _ in range(options.runs)]
            ours, theirs = ({key: statistics.median(run[i][key] for run in runs) for key in runs[0][i]} for i in (0, 1))
            ratios = [f"{ours[key] / theirs[key]:.2f}" for key in ("total", "tracing")]
            counts = [f"{ours[key]:,.0f} / {theirs[key]:,.0f}" for key in ("operations", "fusions")]
            print(
                f"| {name} | {leaves} | {ours['total']:.2f} | {theirs['total']:.2f} | {ratios[0]} | {ratios[1]} | "
                f"{counts[0]} | {counts[1]} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
