"""Shapes: what becomes of a block that is larger than its limit.

A shape maps the norm of a block and its limit to the norm that the block gets.
Norms are finite and at least 0; limits are at least 0 and may be infinite.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from novoclip.ranges import is_limit
from novoclip.safe_math import wide_ratio

Shape = Callable[[jax.Array, jax.Array], jax.Array]


def hard(norm: jax.Array, limit: jax.Array) -> jax.Array:
    """Cut off at the limit: min(n, c)."""
    # Not jnp.minimum: its derivative multiplies that of the limit, which may be infinite, with 0.
    return jnp.where(norm > limit, limit, norm)


def drop(norm: jax.Array, limit: jax.Array) -> jax.Array:
    """Set blocks beyond the limit to zero: n if n <= c, else 0."""
    return jnp.where(norm > limit, 0, norm)


def normalize(norm: jax.Array, limit: jax.Array) -> jax.Array:
    """Give every block the limit as its norm, blocks of zeros and infinite limits excepted."""
    return jnp.where((norm > 0) & is_limit(limit), limit, norm)


def _saturating(curve: Callable[[jax.Array], jax.Array]) -> Shape:
    """Return n -> c curve(n / c), for a curve that rises from 0 with slope 1 towards 1."""

    def shape(norm: jax.Array, limit: jax.Array) -> jax.Array:
        usable = (limit > 0) & is_limit(limit)
        safe = jnp.where(usable, limit, 1)
        # At a ratio of 1e18 every curve has reached 1 in float64 too; beyond, squares would overflow.
        bent = safe * curve(jnp.minimum(wide_ratio(norm, safe), 1e18))
        # Far below the limit the curve is straight, and the ratio may be too small for a number.
        straight = norm <= jnp.finfo(norm.dtype).eps * safe
        return jnp.where(usable, jnp.where(straight, norm, bent), jnp.minimum(norm, limit))

    return shape


tanh = _saturating(jnp.tanh)
arctan = _saturating(lambda ratio: (2 / jnp.pi) * jnp.arctan((jnp.pi / 2) * ratio))
algebraic = _saturating(lambda ratio: ratio / jnp.sqrt(1 + jnp.square(ratio)))
smooth = _saturating(lambda ratio: ratio / (1 + ratio))

# Within its limit a block comes back bit for bit.
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
