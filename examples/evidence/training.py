"""Train one problem for a grid of learning rates and seeds: all of an optimizer's trainings advance together."""

from collections.abc import Callable
from functools import cache, partial
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class Problem(NamedTuple):
    """A model with its data; a seed gives the initial parameters and the order of the batches."""

    init: Callable  # seed -> params
    gradients: Callable  # params, seed, step -> loss, gradients
    evaluate: Callable  # params -> a dict of scalars, with the held-out loss as "loss"


class Outcome(NamedTuple):
    """What came of the trainings: arrays of shape (seeds, rates), and one axis more for the steps."""

    final: dict[str, np.ndarray]  # what `evaluate` measures after training
    first_loss: np.ndarray  # the held-out loss before training
    norms: np.ndarray  # the global norm of each step's gradient, before clipping

    @property
    def diverged(self):
        """Whether the held-out loss ended not finite, or above that of the initial parameters."""
        return ~(self.final["loss"] <= self.first_loss)

    @property
    def largest_norm(self):
        """The largest finite norm of a gradient in each training."""
        return np.where(np.isfinite(self.norms), self.norms, 0.0).max(axis=-1)

    @property
    def nonfinite(self):
        """How many steps of each training had a gradient with a NaN or an infinity, or whose norm overflowed."""
        return (~np.isfinite(self.norms)).sum(axis=-1)


def half_decades(low, high):
    """Return the rates 10 ** low, 10 ** (low + 0.5), ..., 10 ** high."""
    return 10.0 ** np.arange(low, high + 0.25, 0.5)


class Compiled(NamedTuple):
    """The functions of a Problem for several trainings at once, which all optimizers share."""

    init: Callable  # seeds -> params
    gradients: Callable  # params, seeds, step -> losses, gradients
    evaluate: Callable  # params -> a dict of arrays


@cache
def compiled(problem):
    """Return the problem's functions, compiled once for all optimizers."""

    # One after the other: on a CPU, matrix products that `vmap` batches are slower.
    @jax.jit
    def gradients(params, seeds, step):
        return jax.lax.map(lambda pair: problem.gradients(*pair, step), (params, seeds))

    init, evaluate = (jax.jit(partial(jax.lax.map, function)) for function in (problem.init, problem.evaluate))
    return Compiled(init, gradients, evaluate)


def sweep(problem, make_optimizer, rates, *, seeds, steps, label):
    """Train for every rate and seed, and return the Outcome.

    Args:
      problem: the Problem.
      make_optimizer: a function from a learning rate to an Optax transform.
      rates: the learning rates, which stay constant: no warm-up and no decay.
      seeds: how many trainings for each rate.
      steps: how many steps each.
      label: what the line of progress on the standard error stream calls it.
    """
    begin = time.perf_counter()
    functions = compiled(problem)
    seed, rate = (axis.ravel() for axis in jnp.meshgrid(jnp.arange(seeds), jnp.float32(rates), indexing="ij"))

    @jax.jit
    @jax.vmap
    def start(rate, params):
        return make_optimizer(rate).init(params)

    @partial(jax.jit, donate_argnums=(1, 2))
    @jax.vmap
    def update(rate, params, state, gradients, loss):
        updates, state = make_optimizer(rate).update(gradients, state, params, value=loss)
        return optax.apply_updates(params, updates), state, optax.tree.norm(gradients)

    params = functions.init(seed)
    first_loss, state, norms = functions.evaluate(params)["loss"], start(rate, params), []
    for step in range(steps):
        loss, gradients = functions.gradients(params, seed, step)
        params, state, norm = update(rate, params, state, gradients, loss)
        norms.append(norm)
    outcome = Outcome(functions.evaluate(params), first_loss, jnp.stack(norms, axis=-1))
    outcome = jax.tree.map(lambda leaf: np.reshape(leaf, (seeds, len(rates), *leaf.shape[1:])), outcome)
    best = np.nanmin(outcome.final["loss"].mean(axis=0))
    print(f"{label}: best loss {best:.4f}, {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    return outcome
