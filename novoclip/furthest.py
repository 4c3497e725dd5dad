"""Summary of the norms of slices of leaves for the state: the slice of each leaf furthest above its limit."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from novoclip.ranges import is_limit, no_limit
from novoclip.rounding import is_beyond
from novoclip.safe_math import all_true
from novoclip.slices import Slices, places_of


class Shown(NamedTuple):
    """Summary of the norms of slices: for each leaf, the slice that is furthest above its limit.

    Between devices, it takes one maximum and a few sums per leaf, in one collective each.

    Attributes:
      norms: `(leaves,)`, the norm of that slice; where there is no limit, the largest norm. If several slices are
        equally far, the mean of their norms.
      limits: `(leaves,)`, the limit of that slice.
      beyond: float32, number of slices of all leaves that are beyond their limits.
      spoilt: whether the norm of a slice is not finite, or its limit NaN.
      number: total number of slices.
    """

    norms: jax.Array
    limits: jax.Array
    beyond: jax.Array
    spoilt: jax.Array
    number: int


def furthest(norms: Slices, limits: Slices, roundings: Slices, dtype: Any) -> Shown:
    """Return the summary of the norms of slices, given their limits and what of the excess is rounding."""
    found = [_sums(*each) for each in zip(norms.arrays, limits.arrays, roundings.arrays, strict=True)]
    order = [place for places in places_of(norms) for place in places]
    columns = jnp.concatenate(found, axis=1)
    norm, limit, share, beyond = columns[:, np.argsort(order)]
    some = share > 0  # a leaf without elements has no slice
    by = jnp.where(some, share, 1)
    return Shown(
        jnp.where(some, norm / by, 0),
        jnp.where(some, limit / by, no_limit(dtype)),
        jnp.sum(beyond, dtype=jnp.float32),
        # A slice that is spoilt is further above its limit than all that are not, so it is among those summed.
        ~all_true(jnp.isfinite(norm) & ~jnp.isnan(limit)),
        sum(math.prod(array.shape) for array in norms.arrays),
    )


@jax.jit
def _sums(norm: jax.Array, limit: jax.Array, rounding: jax.Array) -> jax.Array:
    """Return four sums over the slices of each leaf of a group, `(4, leaves)`.

    Over the slices with the largest excess: their norm, limit and number, each multiplied by one factor. Over all
    slices: how many are beyond their limits.
    """
    axes = tuple(range(1, norm.ndim))
    beyond = jnp.isfinite(norm) & ~jnp.isnan(limit) & is_beyond(norm, limit, rounding)
    if norm.size == norm.shape[0]:  # each leaf has one slice
        return jnp.stack([norm, limit, jnp.ones_like(norm), beyond.astype(norm.dtype)]).reshape(4, -1)
    excess = _excess(norm, limit)
    top = jnp.max(excess, axis=axes, keepdims=True, initial=-jnp.finfo(norm.dtype).max)
    # A power of two, so that products are exact, and so small that a sum over all slices does not overflow.
    share = jnp.asarray(2.0 ** -math.ceil(math.log2(max(norm[:1].size, 1))), norm.dtype)
    shares = jnp.where(excess == top, share, 0)
    terms = [
        jnp.where(shares > 0, norm * share, 0),
        jnp.where(shares > 0, limit * share, 0),
        shares,
        beyond.astype(norm.dtype),
    ]
    return jnp.stack([jnp.sum(term, axis=axes) for term in terms])


def _excess(norm: jax.Array, limit: jax.Array) -> jax.Array:
    """Return a value that increases with norm / limit. Without a limit it increases with the norm, below all others.

    It is infinite where the norm is not finite, or is above a limit of 0. It ends in a division, which XLA's CPU
    backend computes once for all its uses.
    """
    limited, known = is_limit(limit), jnp.isfinite(norm) & ~jnp.isnan(limit)
    most = jnp.asarray(jnp.inf, norm.dtype)
    above = jnp.where(limit > 0, norm, jnp.where(norm > 0, most, 0))
    number = jnp.where(known, jnp.where(limited, above, -1), most)
    by = jnp.where(limited, jnp.where(limit > 0, limit, 1), jnp.maximum(norm, jnp.finfo(norm.dtype).tiny))
    return number / jnp.where(known, by, 1)
