"""Tolerance for rounding: a norm that is above its limit by no more than rounding counts as within it."""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from novoclip.leaves import is_measured
from novoclip.slices import Slices, places_of

UNITS = 4  # in the last place of a norm, see is_beyond


def is_beyond(norm: jax.Array, limit: jax.Array, rounding: float | jax.Array | None = None) -> jax.Array:
    """Return which norms are above their limits by more than rounding, 4 units in the last place.

    The norm of a block that was clipped before differs from its limit by that much: it is rounded when the factor is
    computed, when the block is multiplied, and when the norm is computed again. Norms of elements are not rounded, and
    are compared exactly.

    Args:
      norm: the norms.
      limit: their limits.
      rounding: the result of `rounding_of` for the gradients; by default that of norms in their own dtype.
    """
    # Not limit * (1 + rounding), which may overflow.
    return norm - limit > (UNITS * jnp.finfo(norm.dtype).eps if rounding is None else rounding) * limit


def rounding_of(tree: Any, norms: Any, units: float = UNITS) -> Any:
    """Return the relative rounding of the norms of a pytree's blocks, one scalar for each array of norms.

    It is `units` in the last place of the norms, or one unit in the last place of the elements, where these have fewer
    bits. Where one array holds the norms of leaves of several dtypes, it is the former.
    """
    if isinstance(norms, Slices):
        leaves = [leaf for leaf in jax.tree.leaves(tree) if is_measured(leaf)]
        each = [rounding_of(leaf, norms.arrays[0][0], units) for leaf in leaves]

        def of_group(norm: jax.Array, places: list[int]) -> jax.Array:
            return jnp.array([each[i] for i in places], norm.dtype).reshape(-1, *[1] * (norm.ndim - 1))

        return norms._replace(arrays=list(map(of_group, norms.arrays, places_of(norms))))
    dtypes = {
        leaf.dtype if hasattr(leaf, "dtype") else norms.dtype for leaf in jax.tree.leaves(tree) if is_measured(leaf)
    }
    coarse = [float(jnp.finfo(dtype).eps) for dtype in dtypes] if norms.ndim == 0 or len(dtypes) == 1 else []
    return max([units * float(jnp.finfo(norms.dtype).eps), *coarse])


def rounded_like(limits: Any, tree: Any) -> Any:
    """Return limits of elements, rounded to the dtypes of 16-bit leaves."""
    leaves = iter([leaf for leaf in jax.tree.leaves(tree) if is_measured(leaf)])

    def each(limit: jax.Array) -> jax.Array:
        info = jnp.finfo(jnp.result_type(next(leaves)))
        if info.bits >= 32:
            return limit
        held = jnp.minimum(limit, jnp.asarray(info.max, limit.dtype))
        return jnp.where(limit > held, limit, lax.reduce_precision(held, info.nexp, info.nmant))

    return jax.tree.map(each, limits)
