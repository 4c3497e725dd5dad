"""Time optimizers on one large parameter, ours beside Optax's, in turns.

python benchmarks/optimizers.py --rounds 7
"""

import argparse
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import novoclip

PAIRS = {
    "sgd, momentum": (optax.sgd(1e-3, 0.9), novoclip.momentum(1e-3)),
    "adagrad": (optax.adagrad(1e-3), novoclip.adagrad(1e-3)),
    "rmsprop": (optax.rmsprop(1e-3), novoclip.rmsprop(1e-3)),
    "adam": (optax.adam(1e-3), novoclip.adam(1e-3)),
    "adam, not looking for NaN": (optax.adam(1e-3), novoclip.adam(1e-3, nonfinite="propagate")),
    "adam, weight decay": (optax.adamw(1e-3, weight_decay=0.1), novoclip.adam(1e-3, weight_decay=0.1)),
    "adam, global norm": (
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)),
        novoclip.adam(1e-3, clip=novoclip.clip_by_global_norm(1.0)),
    ),
    "amsgrad": (optax.amsgrad(1e-3), novoclip.amsgrad(1e-3)),
    "novograd": (optax.novograd(1e-3), novoclip.novograd(1e-3)),
    "novoclip, inverse": (None, novoclip.novoclip()),
    "novoclip, proportional": (None, novoclip.novoclip(threshold="proportional")),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    shape = (options.size, options.size)
    gradient = jnp.asarray(np.random.default_rng(0).normal(size=shape), options.dtype)
    subjects = {(name, side): pair[side] for name, pair in PAIRS.items() for side in (0, 1) if pair[side]}
    steps = {}
    for key, optimizer in subjects.items():

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params: Any, state: Any, gradient: Any, optimizer: Any = optimizer) -> Any:
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        params = jnp.ones(shape, options.dtype)
        steps[key] = step.lower(params, optimizer.init(params), gradient).compile()
    times = {key: [] for key in subjects}
    for _ in range(options.rounds):
        for key, optimizer in subjects.items():
            params = jnp.ones(shape, options.dtype)
            carry = jax.block_until_ready(steps[key](params, optimizer.init(params), gradient))
            start = time.perf_counter()
            jax.block_until_ready(steps[key](*carry, gradient))
            times[key].append(time.perf_counter() - start)
    print(f"{shape} {options.dtype}, {jax.default_backend()}, jax {jax.__version__}")
    print(f"{'':28}{'optax':>10}{'novoclip':>10}{'ratio':>8}   copies of the gradient (optax, novoclip)")
    for name in PAIRS:
        sides = [(name, side) in times for side in (0, 1)]
        found = [1e3 * np.median(times[name, side]) if sides[side] else np.nan for side in (0, 1)]
        memory = [steps[name, side].memory_analysis().temp_size_in_bytes if sides[side] else np.nan for side in (0, 1)]
        copies = ", ".join(f"{size / gradient.nbytes:.2f}" for size in memory)
        print(f"{name:28}{found[0]:7.1f} ms{found[1]:7.1f} ms{found[1] / found[0]:8.2f}   {copies}")


if __name__ == "__main__":
    main()
