"""Quotients, roots and sums that do not overflow or underflow in between, nor do their derivatives."""

from collections.abc import Sequence
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from novoclip.ranges import RANGES, accumulation_dtype
from novoclip.written import kept_apart, one_each

SHRINK = 2.0**-64


def ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Return numerator / denominator, for a denominator that is not 0.

    The derivative is taken as (dn - (n / d) dd) / d: the usual n dd / d^2 squares d, which
    overflows at 1e-30 in float32.
    """
    # The derivative of an integer has no dtype to compute in.
    inexact = jnp.issubdtype(numerator.dtype, jnp.inexact)
    return _ratio(numerator if inexact else numerator.astype(denominator.dtype), denominator)


@jax.custom_jvp
def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    return numerator / denominator


@_ratio.defjvp
def _ratio_jvp(primals: Any, tangents: Any) -> Any:
    quotient = _ratio(*primals)
    # By _ratio again, for the second derivative.
    return quotient, _ratio(tangents[0] - quotient * tangents[1], primals[1])


def first_factor(quotient: jax.Array) -> jax.Array:
    """Return the power of two to multiply by first where the quotient itself may overflow or underflow."""
    ranges = RANGES[jnp.finfo(quotient.dtype).bits]
    # From two Python numbers, JAX would make a float64 array where that is enabled.
    one = jnp.ones((), quotient.dtype)
    down = jnp.where(quotient < 1 / ranges.far, 1 / ranges.shift, one)
    return jnp.where(quotient > ranges.far, ranges.shift, down)


def power_near(size: jax.Array) -> jax.Array:
    """Return a power of two such that a size at least 0, multiplied by it, has its square and inverse in range."""
    return jnp.square(_half_near(size))


def _half_near(size: jax.Array) -> jax.Array:
    ranges = RANGES[jnp.finfo(size.dtype).bits]
    half = math.sqrt(ranges.shift)
    up = jnp.where(size < ranges.tiny, half, jnp.ones((), size.dtype))
    return lax.stop_gradient(jnp.where(size > 1 / ranges.tiny, 1 / half, up))


def wide_ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Return numerator / denominator as `ratio` does, with second derivatives in range, and small inverses.

    XLA may multiply by the inverse, which is flushed to 0 from 8.5e37 on in float32.
    """
    # Half before and half after: a value in between is out of range only if the quotient is.
    half = _half_near(denominator)
    if denominator.ndim == 0:
        # If the denominator is a constant, XLA folds the three factors into one, and flushes it to 0.
        half = lax.optimization_barrier(half)
    return (numerator * half) / (denominator * jnp.square(half)) * half


def logarithm(size: jax.Array) -> jax.Array:
    """Return the logarithm of a size above 0, with second derivatives in range."""
    near = power_near(size)
    return jnp.log(size * near) - jnp.log(near)


def square_root(total: jax.Array) -> jax.Array:
    """Return the square root, with a derivative of 0 at 0."""
    empty = total == 0  # and not `total > 0`, which would turn NaN into 0
    return jnp.where(empty, 0, jnp.sqrt(jnp.where(empty, 1, total)))


def power(base: jax.Array, exponent: jax.Array) -> jax.Array:
    """Return base^exponent for a base at least 0; it is 0 at 0, with derivatives of 0 there."""
    empty = base == 0
    return jnp.where(empty, 0, jnp.where(empty, 1, base) ** exponent)


def hypotenuse(one: jax.Array, other: jax.Array) -> jax.Array:
    """Return sqrt(one^2 + other^2) for arguments at least 0, with derivatives of 0 where both are 0."""
    return _hypotenuse(*jnp.broadcast_arrays(one, other))


@jax.custom_jvp
def _hypotenuse(one: jax.Array, other: jax.Array) -> jax.Array:
    # By powers of two, and not by the quotient of the two: a division costs as much as a root.
    ranges, large = RANGES[jnp.finfo(one.dtype).bits], jnp.maximum(one, other)
    low, high = large < ranges.edge, large > 1 / ranges.edge
    # Not by jnp.where, each call of which is one more for XLA to inline.
    up, same, down = (lax.full_like(large, number) for number in (ranges.step, 1, 1 / ranges.step))
    by = lax.select(low, up, lax.select(high, down, same))
    back = lax.select(low, down, lax.select(high, up, same))
    # Inside of a scan, JAX may take the second derivative without the rule below, and it must be finite at 0. There the
    # root is that of the least number, which becomes 0 on the way back; to all others that adds nothing.
    least = jnp.finfo(one.dtype).tiny
    return jnp.sqrt(jnp.square(one * by) + (jnp.square(other * by) + least)) * back


@_hypotenuse.defjvp
def _hypotenuse_jvp(primals: Any, tangents: Any) -> Any:
    # The derivatives of the squares underflow at 1e-30.
    size = _hypotenuse(*primals)
    by = jnp.where(size == 0, 1, size)
    return size, sum(_ratio(jnp.where(size == 0, 0, x), by) * dx for x, dx in zip(primals, tangents, strict=True))


def all_true(flags: jax.Array) -> jax.Array:
    """Return whether all flags are true, by a minimum of numbers.

    XLA's CPU backend has these in a library, and compiles each reduction of booleans.
    """
    return jnp.min(flags.astype(jnp.float32), initial=1) > 0


def shrinking(leaves: Sequence[jax.Array]) -> list[jax.Array]:
    """Return the factor of `shrunk` for each leaf."""
    return one_each([jnp.asarray(SHRINK, accumulation_dtype(leaf.dtype)) for leaf in leaves], leaves)


def shrunk(leaf: jax.Array, factor: jax.Array) -> jax.Array:
    """Return the elements scaled so small that any sum of them is finite if and only if all of them are.

    The maximum cannot be used: XLA's CPU backend loses NaN in maxima of 4096 and more elements. Neither can the sum of
    x - x, which is 0 under `--xla_cpu_enable_fast_math`, nor `all(isfinite(x))`, whose booleans XLA writes out.
    """
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        # Not by the same factor: XLA would add the two parts first.
        return shrunk(leaf.real, factor) + 0.5 * shrunk(leaf.imag, factor)
    leaf = lax.stop_gradient(leaf)
    if leaf.dtype != factor.dtype:
        # Otherwise XLA shares the upcast of 16-bit leaves with later operations, and keeps a float32 copy.
        leaf = kept_apart(leaf).astype(factor.dtype)
    return leaf * factor


def not_lost(largest: jax.Array, total: jax.Array) -> jax.Array:
    """Return the largest absolute value, or NaN where XLA's maximum lost a NaN; with an infinity it is infinite.

    The total is the sum of the `shrunk` elements: NaN if an element is NaN, or if there are infinities of both signs.
    """
    return jnp.where(jnp.isfinite(total) | jnp.isinf(largest), largest, jnp.abs(total))
