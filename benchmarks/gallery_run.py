"""What the gallery's pictures show: one record of gradient norms, and transforms run on it."""

from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

import novoclip
from novoclip.catalog import Entry

ROWS = 300
LEVEL = 0.5  # of the calm norms, once they have fallen
RISE = 240  # from this row on, the level is three times as high
SPIKES = {40: 8.0, 90: 20.0, 91: 12.0, 92: 30.0, 140: 100.0, 180: 6.0, 280: 20.0}  # row: multiple of the level
NONFINITE = 210
PROBES = np.logspace(-2, 3, 121)  # gradient norms of the response curve
CALM = 200  # steps before a warm response
EXAMPLES = 8


class Shown(NamedTuple):
    """The norms of the results, in float64.

    Attributes:
      fresh: of a first gradient, for each of PROBES.
      warm: of one after CALM calm steps, for each of PROBES.
      record: of the record, row by row.
    """

    fresh: np.ndarray
    warm: np.ndarray
    record: np.ndarray


def noise(rows: int) -> np.ndarray:
    """Return factors near 1 whose logarithm has a standard deviation of 0.12."""
    return np.exp(0.12 * np.random.default_rng(20).standard_normal(rows))


def levels() -> np.ndarray:
    """Return the level of the norms of the record: a fall from 5.0 to 0.5, and a rise."""
    rows = np.arange(ROWS)
    return (LEVEL + 4.5 * np.exp(-rows / 12)) * np.where(rows < RISE, 1, 3)


def record() -> np.ndarray:
    """Return the norms of the record: the levels with noise, with spikes, and one that is not finite."""
    norms = levels() * noise(ROWS)
    for row, factor in SPIKES.items():
        norms[row] *= factor
    norms[NONFINITE] = np.nan
    return norms


def record_text() -> str:
    """Return the record as CSV, for `novoclip replay`."""
    return "step,grad_norm\n" + "".join(f"{step},{norm:.4g}\n" for step, norm in enumerate(record()))


def transform_of(line: str) -> optax.GradientTransformationExtraArgs:
    """Return what a card's line makes."""
    made = eval(line, {"novoclip": novoclip, "optax": optax, "jnp": jnp})
    return optax.with_extra_args_support(made)


def examples_of(norm: jax.Array, level: jax.Array) -> jax.Array:
    """Return the gradients of a batch with this mean: equal up to 1.5 levels, and what is above is of one example."""
    low = jnp.minimum(norm, 1.5 * level)
    return jnp.full((EXAMPLES, 1), low).at[0, 0].set(EXAMPLES * norm - (EXAMPLES - 1) * low)


def gradient_of(norm: jax.Array, level: jax.Array) -> jax.Array:
    """Return a gradient of one element."""
    return norm[None]


def run(entry: Entry, line: str, weight: float) -> Shown:
    """Run a transform on single gradients, each from a fresh state and from one of a calm run, and on the record."""
    transform = transform_of(line)
    gradient = examples_of if entry.place == "examples" else gradient_of
    rows = [jnp.asarray(each, jnp.float32) for each in (PROBES, LEVEL * noise(CALM), record(), levels())]

    def whole(probes: jax.Array, calm: jax.Array, norms: jax.Array, levels: jax.Array) -> tuple[jax.Array, ...]:
        params = jnp.full(1, weight)

        def step(state: Any, row: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
            updates, state = transform.update(gradient(*row), state, params)
            return state, jnp.abs(updates[0])

        fresh = transform.init(params)
        warm, _ = lax.scan(step, fresh, (calm, jnp.full(CALM, LEVEL)))
        responses = (
            jax.vmap(lambda norm, state=state: step(state, (norm, LEVEL))[1])(probes) for state in (fresh, warm)
        )
        return (*responses, lax.scan(step, fresh, (norms, levels))[1])

    return Shown(*(np.asarray(each, np.float64) for each in jax.jit(whole)(*rows)))
