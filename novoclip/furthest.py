"""What a rule shows of slices of leaves."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from novoclip.ranges import is_limit, no_limit
from novoclip.rounding import is_beyond
from novoclip.slices import Slices, places_of


class Shown(NamedTuple):
    """What is shown of slices: for each leaf, that slice which is furthest above its limit.

    All that leaves the devices that hold them are a maximum and a few sums for each leaf, in one collective each.

    Attributes:
      norms: `(leaves,)`, the norm of the slice, or of the largest where there is no limit; of several alike, the mean.
      limits: `(leaves,)`, its limit.
      beyond: float32, how many slices of all leaves are beyond their limits.
      spoilt: float32, how many have a norm that is not finite, or a limit that is NaN.
      number: how many there are.
    """

    norms: jax.Array
    limits: jax.Array
    beyond: jax.Array
    spoilt: jax.Array
    number: int


def furthest(norms: Slices, limits: Slices, roundings: Slices, dtype: Any) -> Shown:
    """Return what is shown of the norms of slices."""
    found = [_sums(*each) for each in zip(norms.arrays, limits.arrays, roundings.arrays, strict=True)]
    order = [place for places in places_of(norms) for place in places]
    columns = jnp.concatenate(found, axis=1)
    norm, limit, share, beyond, spoilt = columns[:, np.argsort(order)]
    some = share > 0  # a leaf without numbers has no slice
    by = jnp.where(some, share, 1)
    return Shown(
        jnp.where(some, norm / by, 0),
        jnp.where(some, limit / by, no_limit(dtype)),
        jnp.sum(beyond, dtype=jnp.float32),
        jnp.sum(spoilt, dtype=jnp.float32),
        sum(math.prod(array.shape) for array in norms.arrays),
    )


@jax.jit
def _sums(norm: jax.Array, limit: jax.Array, rounding: jax.Array) -> jax.Array:
    """Return sums for each leaf of a group.

    They are of the norm, the limit and the number of the slices with the largest excess, of those beyond their limits
    and of those spoilt.
    """
    axes = tuple(range(1, norm.ndim))
    finite = jnp.isfinite(norm) & ~jnp.isnan(limit)
    beyond = finite & is_beyond(norm, limit, rounding)
    excess = _excess(norm, limit)
    top = jnp.max(excess, axis=axes, keepdims=True, initial=-jnp.finfo(norm.dtype).max)
    # A power of two, by which no number is rounded, and small enough for as many of the largest as there are slices.
    share = jnp.asarray(2.0 ** -math.ceil(math.log2(max(norm[:1].size, 1))), norm.dtype)
    shares = jnp.where(excess == top, share, 0)
    terms = [
        jnp.where(shares > 0, norm * share, 0),
        jnp.where(shares > 0, limit * share, 0),
        shares,
        beyond.astype(norm.dtype),
        (~finite).astype(norm.dtype),
    ]
    return jnp.sum(jnp.stack(terms), axis=tuple(axis + 1 for axis in axes))


def _excess(norm: jax.Array, limit: jax.Array) -> jax.Array:
    """Return a number that grows with norm / limit, or with the norm below all others where there is no limit."""
    most = jnp.finfo(norm.dtype).max
    quotient = jnp.where(limit > 0, norm / jnp.where(limit > 0, limit, 1), jnp.where(norm > 0, most, 0))
    inverse = -1 / jnp.maximum(norm, jnp.finfo(norm.dtype).tiny)
    known = jnp.isfinite(norm) & ~jnp.isnan(limit)
    return jnp.where(known, jnp.minimum(jnp.where(is_limit(limit), quotient, inverse), most), most)
