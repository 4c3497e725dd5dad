"""Clipping shapes: functions of the norm n and the limit c of a block that return its new norm.

Norms are finite and at least 0. Limits are at least 0 and may be infinite.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from novoclip.ranges import is_limit
from novoclip.safe_math import wide_ratio

Shape = Callable[[jax.Array, jax.Array], jax.Array]


def hard(norm: jax.Array, limit: jax.Array) -> jax.Array:
    """Clip at the limit: min(n, c)."""
    # Not jnp.minimum, whose derivative multiplies 0 by the derivative of the limit, which may be infinite.
    return jnp.where(norm > limit, limit, norm)


def drop(norm: jax.Array, limit: jax.Array) -> jax.Array:
    """Set blocks beyond the limit to zero: n if n <= c, else 0."""
    return jnp.where(norm > limit, 0, norm)


def normalize(norm: jax.Array, limit: jax.Array) -> jax.Array:
    """Set the norm of every block to its limit: c, or n if n is 0 or c is infinite."""
    return jnp.where((norm > 0) & is_limit(limit), limit, norm)


def _saturating(curve: Callable[[jax.Array], jax.Array]) -> Shape:
    """Return the shape c curve(n / c), for a curve that rises from 0 with slope 1 towards 1."""

    def shape(norm: jax.Array, limit: jax.Array) -> jax.Array:
        usable = (limit > 0) & is_limit(limit)
        safe = jnp.where(usable, limit, 1)
        # At a ratio of 1e18 every curve is 1, also in float64. The squares of larger ratios would overflow.
        bent = safe * curve(jnp.minimum(wide_ratio(norm, safe), 1e18))
        # Far below the limit the curve is linear, and the ratio may underflow.
        straight = norm <= jnp.finfo(norm.dtype).eps * safe
        return jnp.where(usable, jnp.where(straight, norm, bent), jnp.minimum(norm, limit))

    return shape


tanh = _saturating(jnp.tanh)
arctan = _saturating(lambda ratio: (2 / jnp.pi) * jnp.arctan((jnp.pi / 2) * ratio))
algebraic = _saturating(lambda ratio: ratio / jnp.sqrt(1 + jnp.square(ratio)))
smooth = _saturating(lambda ratio: ratio / (1 + ratio))

# Shapes that return a block within its limit bit for bit.
CUTS = ("hard", "drop")
SHAPES: dict[str, Shape] = {
    "hard": hard,
    "tanh": tanh,
    "arctan": arctan,
    "algebraic": algebraic,
    "smooth": smooth,
    "normalize": normalize,
    "drop": drop,
}
