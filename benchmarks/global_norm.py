"""Time clip + Adam + apply_updates against Optax's chain, interleaved in one process.

    python benchmarks/global_norm.py [--leaves 1] [--size 67108864] [--dtype float32] [--rounds 7]

Prints, for each rule, the median time of a step, its ratio to Optax's clip_by_global_norm
and to Adam alone, the temporary bytes of the compiled step as a share of the gradients', and
the seconds that tracing and compiling took.
"""

import argparse
import functools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

import novoclip

RULES = {
    "adam alone": optax.identity,
    "optax.clip_by_global_norm": lambda: optax.clip_by_global_norm(1.0),
    "clip_by_global_norm": lambda: novoclip.clip_by_global_norm(1.0),
    "clip_by_global_norm, no statistics": lambda: _without_statistics(novoclip.clip_by_global_norm(1.0)),
    "autoclip": lambda: novoclip.autoclip(90.0),
    "zclip": novoclip.zclip,
    "clip_by_norm, tensor": lambda: novoclip.clip_by_norm(1.0),
    "optax.clip": lambda: optax.clip(1.0),
    "clip_by_value": lambda: novoclip.clip_by_value(1.0),
    "clip_by_value, counted": lambda: novoclip.clip_by_value(1.0, count=True),
    "optax.clip_by_block_rms": lambda: optax.clip_by_block_rms(1.0),
    "clip_by_norm, tensor, rms": lambda: novoclip.clip_by_norm(1.0, norm="rms"),
    "clip_by_second_moment": lambda: novoclip.clip_by_second_moment(3.0, form="proportional"),
}


def _without_statistics(rule: optax.GradientTransformationExtraArgs) -> optax.GradientTransformation:
    """Return the rule that forgets everything it counted."""
    return optax.GradientTransformation(
        lambda _: (), lambda updates, _, params=None: (rule.update(updates, rule.init(updates), params)[0], ())
    )


def step_of(rule: optax.GradientTransformation, params: Any) -> tuple[Any, Any, float]:
    """Return (optimizer, compiled step, seconds to make it) with donated parameters and state."""
    optimizer = optax.chain(rule, optax.adam(1e-3, mu_dtype=jnp.float32))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, gradients: Any) -> Any:
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    start = time.perf_counter()
    compiled = step.lower(params, state, params).compile()
    return optimizer, compiled, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leaves", type=int, default=1)
    parser.add_argument("--size", type=int, default=2**26, help="numbers in all leaves together")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*", default=list(RULES), help="names of rules")
    options = parser.parse_args()

    shape = (max(options.size // options.leaves // 8192, 1), 8192)
    params = {f"leaf{i}": jnp.ones(shape, options.dtype) for i in range(options.leaves)}
    gradients = jax.tree.map(lambda leaf: leaf * 1e-3, params)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(gradients))
    steps = {name: step_of(RULES[name](), params) for name in options.only}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, (optimizer, step, _) in steps.items():
            moving, state = jax.tree.map(jnp.copy, params), optimizer.init(params)
            moving, state = jax.block_until_ready(step(moving, state, gradients))
            for _ in range(3):
                start = time.perf_counter()
                moving, state = jax.block_until_ready(step(moving, state, gradients))
                times[name].append(time.perf_counter() - start)
            del moving, state
    medians = {name: statistics.median(found) for name, found in times.items()}
    reference, floor = medians.get("optax.clip_by_global_norm"), medians.get("adam alone")
    print(f"{options.leaves} x {shape} {options.dtype}, {jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(f"{'rule':36s} {'a step':>11s}  optax   adam   temporaries   compiling")
    for name, seconds in medians.items():
        ratios = "".join(f"  {seconds / other:5.2f}" if other else "      -" for other in (reference, floor))
        temporary = steps[name][1].memory_analysis().temp_size_in_bytes / size
        print(f"{name:36s} {seconds * 1e3:8.1f} ms {ratios}   {temporary:11.4f}   {steps[name][2]:7.2f} s")


if __name__ == "__main__":
    main()
