"""The range of floating-point numbers: powers of two that keep sums of squares in it, and the values for no limit."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Range(NamedTuple):
    """Powers of two by which elements are multiplied, exactly, before they are squared.

    With the usual one the sum of squares is in range for norms from 2e-24 to 1e6 (float64: 1e-265 to 5e33), and for a
    norm of 0: blocks that are exactly zero are common, and must not cost a second pass.
    """

    usual: float
    for_large: float
    for_small: float
    small: float  # a sum of squares below which some may have been lost
    far: float  # quotients above this, or below its inverse, are multiplied in two steps
    shift: float  # the first of the two factors, or its inverse
    tiny: float  # below this, and above its inverse, squares may be out of range
    edge: float  # below this, and above its inverse, a sum of two squares may lose the smaller or overflow
    step: float  # what numbers beyond an edge are multiplied by, or by its inverse


RANGES = {
    32: Range(2.0**44, 2.0**-65, 2.0**100, 2.0**-70, 2.0**120, 2.0**100, 2.0**-60, 2.0**-40, 2.0**86),
    64: Range(2.0**400, 2.0**-520, 2.0**1000, 2.0**-960, 2.0**960, 2.0**900, 2.0**-500, 2.0**-300, 2.0**712),
}


_CONFIG: Any = jax.config


def no_limit(dtype: Any) -> Any:
    """Return the value for no limit: infinity, or the largest number under `jax.debug_infs`, which forbids infinity.

    States hold it, so it must not be a value that a debugger searches for. No finite norm is above either.
    """
    return np.asarray(jnp.finfo(dtype).max if _CONFIG.jax_debug_infs else np.inf, dtype)


def is_limit(limit: jax.Array) -> jax.Array:
    """Return where there is a limit, and not one of the two values for no limit."""
    return limit < jnp.finfo(limit.dtype).max


def limits_as(limits: jax.Array, dtype: Any) -> jax.Array:
    """Return limits in another dtype. A limit beyond its range becomes no limit."""
    most = min(float(jnp.finfo(limits.dtype).max), float(jnp.finfo(dtype).max))
    if limits.dtype == dtype:
        return limits
    return jnp.where(limits >= most, no_limit(dtype), jnp.where(limits >= most, 0, limits).astype(dtype))


def without_infinity(tree: Any) -> Any:
    """Return a pytree of arrays unchanged, or under `jax.debug_infs` with the largest number in place of infinity."""
    if not _CONFIG.jax_debug_infs:
        return tree

    def each(array: Any) -> Any:
        if not jnp.issubdtype(array.dtype, jnp.floating):
            return array
        most = np.asarray(jnp.finfo(array.dtype).max, array.dtype)
        return jnp.minimum(array, most) if isinstance(array, jax.Array) else np.minimum(array, most)

    return jax.tree.map(each, tree)


def accumulation_dtype(dtype: Any) -> Any:
    """Return float64 for 64-bit floats and 128-bit complex numbers, else float32."""
    # Without x64, JAX reads NumPy's float64 as float32.
    return jnp.float64 if jnp.finfo(jax.dtypes.canonicalize_dtype(dtype)).bits == 64 else jnp.float32


def common_dtype(leaves: Sequence[jax.Array]) -> Any:
    """Return float64 if any leaf has 64-bit elements, else float32."""
    double = any(accumulation_dtype(leaf.dtype) == jnp.float64 for leaf in leaves)
    return jnp.float64 if double else jnp.float32
