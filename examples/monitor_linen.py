"""Norms of a Flax linen training (TrainState), written to a CSV file; a broken batch is skipped."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from flax import linen as nn
from flax.training.train_state import TrainState
import jax
import jax.numpy as jnp
import optax

import novoclip
from novoclip.writers import writer

STEPS, BROKEN = 30, 20


def batch(step):
    """Return 32 points of a line; those of one step have targets that are not numbers."""
    x = jax.random.normal(jax.random.key(step), (32, 4))
    return x, jnp.where(step == BROKEN, jnp.nan, x.sum(axis=1, keepdims=True))


@jax.jit
def train_step(state):
    x, y = batch(state.step)
    loss, gradients = jax.value_and_grad(lambda params: jnp.mean((state.apply_fn(params, x) - y) ** 2))(state.params)
    # As apply_gradients, which does not pass the loss on.
    updates, opt_state = state.tx.update(gradients, state.opt_state, state.params, value=loss)
    params = optax.apply_updates(state.params, updates)
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
    return state, {"loss": loss} | novoclip.metrics(opt_state)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("monitor.csv"), help="a file, .csv (%(default)s)")
    out = parser.parse_args().out

    model = nn.Dense(1)
    params = model.init(jax.random.key(0), jnp.zeros((1, 4)))
    state = TrainState.create(apply_fn=model.apply, params=params, tx=novoclip.protect(optax.adamw(1e-2)))
    with writer(out) as monitor:
        for step in range(STEPS):
            state, metrics = train_step(state)
            monitor.write(step, metrics)

    last = list(csv.DictReader(out.read_text().splitlines()))[-1]
    print(f"step {last['step']}: spikes/skipped {last['spikes/skipped']}")


if __name__ == "__main__":
    main()
