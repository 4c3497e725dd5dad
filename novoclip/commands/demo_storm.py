"""A small training through a gradient storm, which needs nothing but JAX and Optax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import optax

from novoclip.guards.protect import protect
from novoclip.rules.autoclip import autoclip
from novoclip.rules.zclip import zclip

WIDTH = 64
BATCH = 128
EVERY = 40  # steps from one bad gradient to the next
FACTOR = 1000.0  # how many times too large a bad gradient is
ADAM = "optax.adam(3e-3)"


def optimizers() -> dict[str, Callable[[], optax.GradientTransformation]]:
    """Return the optimizers that are compared, by what one writes in Python."""
    return {
        ADAM: lambda: optax.adam(3e-3),
        f"optax.chain(novoclip.autoclip(90.0), {ADAM})": lambda: optax.chain(autoclip(90.0), optax.adam(3e-3)),
        f"optax.chain(novoclip.zclip(), {ADAM})": lambda: optax.chain(zclip(), optax.adam(3e-3)),
        f"novoclip.protect({ADAM})": lambda: protect(optax.adam(3e-3)),
    }


def trained(optimizer: optax.GradientTransformation, steps: int, seed: int) -> list[float]:
    """Fit a network with one hidden layer to a function of two variables, three times.

    Args:
      optimizer: the optimizer, with its rules.
      steps: the number of steps.
      seed: of the start and the batches.

    Returns:
      The mean squared error over 4096 new points: without a storm; if the gradient of each 40th step arrives 1000 times
      too large, with another sign in half of its elements; and if the last such gradient is NaN as well.
    """
    start, points, signs, new = jax.random.split(jax.random.key(seed), 4)
    rows = jnp.arange(steps)
    last = steps // EVERY * EVERY - 1

    def step(storm: jax.Array, carry: Any, row: jax.Array) -> tuple[Any, None]:
        params, state = carry
        x = jax.random.uniform(jax.random.fold_in(points, row), (BATCH, 2), minval=-1.0, maxval=1.0)
        gradients = jax.grad(_loss)(params, x)
        factor = jnp.where((storm == 2) & (row == last), jnp.nan, FACTOR)
        key = jax.random.fold_in(signs, row)
        wrong = jax.tree.map(lambda leaf: factor * leaf * jax.random.rademacher(key, leaf.shape, leaf.dtype), gradients)
        bad = (storm > 0) & ((row + 1) % EVERY == 0)
        gradients = jax.tree.map(lambda good, other: jnp.where(bad, other, good), gradients, wrong)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    def error(storm: jax.Array) -> jax.Array:
        params = _start(start)
        (params, _), _ = lax.scan(lambda carry, row: step(storm, carry, row), (params, optimizer.init(params)), rows)
        return _loss(params, jax.random.uniform(new, (4096, 2), minval=-1.0, maxval=1.0))

    found: list[float] = jax.jit(jax.vmap(error))(jnp.arange(3)).tolist()
    return found


def _start(key: jax.Array) -> dict[str, jax.Array]:
    first, second = jax.random.split(key)
    return {
        "in": jax.random.normal(first, (2, WIDTH)),
        "bias": jnp.zeros(WIDTH),
        "out": jax.random.normal(second, (WIDTH,)) / WIDTH**0.5,
    }


def _loss(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    found = jnp.tanh(x @ params["in"] + params["bias"]) @ params["out"]
    return jnp.mean((found - jnp.sin(3 * x[:, 0]) * jnp.cos(2 * x[:, 1])) ** 2)
