"""Quotients, roots and sums that stay in the range of numbers, as their derivatives do."""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

SHRINK = 2.0**-64


def ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Return numerator / denominator, for a denominator that is not 0.

    The derivative is taken as (dn - (n / d) dd) / d: the usual n dd / d^2 squares d, which
    overflows at 1e-30 in float32.
    """
    # An integer has no derivative that could be computed with.
    inexact = jnp.issubdtype(numerator.dtype, jnp.inexact)
    return _ratio(numerator if inexact else numerator.astype(denominator.dtype), denominator)


@jax.custom_jvp
def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    return numerator / denominator


@_ratio.defjvp
def _ratio_jvp(primals: Any, tangents: Any) -> Any:
    quotient = _ratio(*primals)
    # And again by ratio, for the second derivative.
    return quotient, _ratio(tangents[0] - quotient * tangents[1], primals[1])


def wide_ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Return numerator / denominator, where the inverse of the denominator may be too small for a number."""
    # XLA may multiply by the inverse, which is flushed to 0 from 8.5e37 on in float32.
    info = jnp.finfo(denominator.dtype)
    far = denominator > jnp.asarray(2.0 ** (info.maxexp - 28), denominator.dtype)
    by = jnp.where(far, jnp.asarray(2.0 ** -(info.maxexp // 2), denominator.dtype), 1)
    return ratio(numerator * by, denominator * by)


def square_root(total: jax.Array) -> jax.Array:
    """Return the square root, with a derivative of 0 at 0."""
    empty = total == 0  # and not `total > 0`, which would turn NaN into 0
    return jnp.where(empty, 0, jnp.sqrt(jnp.where(empty, 1, total)))


def hypotenuse(one: jax.Array, other: jax.Array) -> jax.Array:
    """Return sqrt(one^2 + other^2) of numbers that are at least 0."""
    large, small = jnp.maximum(one, other), jnp.minimum(one, other)
    square = jnp.square(ratio(small, jnp.where(large > 0, large, 1)))
    # And not large * sqrt(1 + square): a long sum would lose most of its small terms to that 1.
    return large + large * (square / (1 + jnp.sqrt(1 + square)))


def shrunk(leaf: jax.Array, dtype: Any) -> jax.Array:
    """Return absolute values so small that any sum of them is finite just where all of them are.

    Their maximum would not do: XLA's CPU backend loses NaN in maxima of 4096 numbers and more. Nor would the sum of
    x - x, which is 0 under `--xla_cpu_enable_fast_math`, nor `all(isfinite(x))`, whose booleans it writes out.
    """
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return shrunk(leaf.real, dtype) + shrunk(leaf.imag, dtype)
    # After a barrier, or XLA shares the upcast of 16-bit leaves with what follows, and keeps a float32 copy.
    return jnp.abs(lax.optimization_barrier(lax.stop_gradient(leaf))).astype(dtype) * SHRINK
