"""Norms of a Flax nnx training, written to a CSV file; a broken batch is skipped."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from flax import nnx
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


@nnx.jit
def train_step(model, optimizer, step):
    x, y = batch(step)
    loss, gradients = nnx.value_and_grad(lambda model: jnp.mean((model(x) - y) ** 2))(model)
    optimizer.update(model, gradients, value=loss)
    return {"loss": loss} | novoclip.metrics(optimizer.opt_state)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("monitor.csv"), help="a file, .csv (%(default)s)")
    out = parser.parse_args().out

    model = nnx.Linear(4, 1, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, novoclip.protect(optax.adamw(1e-2)), wrt=nnx.Param)
    with writer(out) as monitor:
        for step in range(STEPS):
            monitor.write(step, train_step(model, optimizer, step))

    last = list(csv.DictReader(out.read_text().splitlines()))[-1]
    print(f"step {last['step']}: spikes/skipped {last['spikes/skipped']}")


if __name__ == "__main__":
    main()
