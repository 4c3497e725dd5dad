"""Moments in bfloat16 that are rounded up or down at random, so that slow means follow."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from novoclip.leaves import narrow
from novoclip.mesh import zeros_like
from novoclip.precision.narrow import bits_of
from novoclip.precision.random_bits import random_bits
from novoclip.precision.stochastic import stochastically_rounded


class Rounded(NamedTuple):
    """An array in bfloat16 whose rounding has the right expectation, a pytree node.

    Attributes:
      elements: bfloat16, the array.
    """

    elements: jax.Array


class RoundedRoot(NamedTuple):
    """The root of an array in bfloat16, whose rounding has the right expectation of its square, a pytree node.

    The running mean is that of the squares: were the expectation of the root right, that of the square would be too
    large, by the variance of the rounding.

    Attributes:
      elements: bfloat16, the root, at least 0.
    """

    elements: jax.Array


def rounded_zeros(shapes: Any, *, root: bool) -> Any:
    """Return a pytree of zeros, from ShapeDtypeStructs, created with their shardings.

    Zeros are plain for complex leaves, unless they are roots, which are real.
    """

    def zero(leaf: Any) -> Any:
        if root:
            return RoundedRoot(zeros_like(leaf, jnp.bfloat16))
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            return zeros_like(leaf)
        return Rounded(zeros_like(leaf, jnp.bfloat16))

    return jax.tree.map(zero, shapes)


def is_rounded(node: Any) -> bool:
    """Whether a node of a state is an array that is rounded at random to bfloat16."""
    return isinstance(node, Rounded | RoundedRoot)


def rounded_as(node: Any, array: jax.Array, key: jax.Array) -> Any:
    """Return an array, rounded at random to bfloat16, in a node like another."""
    wide = narrow(array, jnp.float32)
    bits = random_bits(key, wide)
    if isinstance(node, RoundedRoot):
        return RoundedRoot(root_rounded(wide, bits))
    return Rounded(stochastically_rounded(wide, jnp.bfloat16, bits))


def root_rounded(root: jax.Array, bits: jax.Array) -> jax.Array:
    """Round float32 numbers of at least 0 to bfloat16 at random, so that the mean of the square is the square.

    Of the two nearest numbers a <= x <= b of the dtype, the result is b with probability (x^2 - a^2) / (b^2 - a^2),
    within 2^-24. Numbers of the dtype remain as they are, as do infinity and NaN; numbers beyond its range become its
    largest, and on devices that flush subnormal numbers those below 1.2e-38 become 0.

    Args:
      root: float32 numbers x, of any shape.
      bits: uint32, random bits of the shape of `root`.

    Returns:
      The rounded numbers, in bfloat16.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = jnp.full(10_000, 0.1)
      >>> rounded = root_rounded(x, jax.random.bits(jax.random.key(0), x.shape)).astype(jnp.float32)
      >>> print(jnp.unique(rounded), round(float((rounded**2).mean()), 4))
      [0.09960938 0.10009766] 0.01
    """
    given = bits_of(root)
    # In units of b - a, a is the significand n = 128 + its 7 bits, and x is n + f.
    below = (128 + ((given >> 16) & 0x7F)).astype(jnp.float32)
    part = (given & 0xFFFF).astype(jnp.float32) * 2.0**-16
    chance = part * (2 * below + part) / (2 * below + 1)
    up = (bits >> 8).astype(jnp.float32) * 2.0**-24 < chance
    rounded = lax.bitcast_convert_type(((given >> 16) + up.astype(jnp.uint32)) << 16, jnp.float32)
    most = jnp.asarray(jnp.finfo(jnp.bfloat16).max, jnp.float32)
    return jnp.where(jnp.isfinite(root), jnp.minimum(rounded, most), root).astype(jnp.bfloat16)
