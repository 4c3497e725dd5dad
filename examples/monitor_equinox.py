"""Norms of an Equinox training, written to a CSV file; a broken batch is skipped."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import novoclip
from novoclip.writers import writer

STEPS, BROKEN = 30, 20
optimizer = novoclip.protect(optax.adamw(1e-2))


def batch(step):
    """Return 32 points of a line; those of one step have targets that are not numbers."""
    x = jax.random.normal(jax.random.key(step), (32, 4))
    return x, jnp.where(step == BROKEN, jnp.nan, x.sum(axis=1, keepdims=True))


@eqx.filter_jit
def train_step(model, opt_state, step):
    x, y = batch(step)
    loss, gradients = eqx.filter_value_and_grad(lambda model: jnp.mean((jax.vmap(model)(x) - y) ** 2))(model)
    updates, opt_state = optimizer.update(gradients, opt_state, eqx.filter(model, eqx.is_inexact_array), value=loss)
    return eqx.apply_updates(model, updates), opt_state, {"loss": loss} | novoclip.metrics(opt_state)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("monitor.csv"), help="a file, .csv (%(default)s)")
    out = parser.parse_args().out

    model = eqx.nn.Linear(4, 1, key=jax.random.key(0))
    opt_state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    with writer(out) as monitor:
        for step in range(STEPS):
            # An array: filter_jit compiles again for each value of a Python number.
            model, opt_state, metrics = train_step(model, opt_state, jnp.asarray(step))
            monitor.write(step, metrics)

    last = list(csv.DictReader(out.read_text().splitlines()))[-1]
    print(f"step {last['step']}: spikes/skipped {last['spikes/skipped']}")


if __name__ == "__main__":
    main()
