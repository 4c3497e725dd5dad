"""Singular values of matrices and their replacement, with derivatives also where some are 0 or equal."""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from novoclip.ranges import accumulation_dtype
from novoclip.safe_math import not_lost, ratio, shrinking, shrunk


@jax.custom_jvp
def values_of(stack: jax.Array) -> jax.Array:
    """Return the singular values of each matrix; infinite or NaN where it is not finite."""
    scaled, largest, finite = _scaled(stack)
    return jnp.where(finite, jnp.linalg.svd(scaled, compute_uv=False) * largest, largest)


@values_of.defjvp
def _values_of_jvp(primals: Any, tangents: Any) -> Any:
    left, right = _vectors(primals[0])
    return values_of(primals[0]), _diagonal(_adjoint(left) @ _wide(tangents[0]) @ right).real


@jax.custom_jvp
def rebuild(stack: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
    """Return each matrix with the singular values `new` in place of `old`, in at least float32.

    U diag(old) V* becomes F = U diag(new) V*. With A = U* dM V, the derivative U* dF V has d new as its diagonal, and
    beside it (A + A*)_ij / 2 (new_i - new_j) / (old_i - old_j) + (A - A*)_ij / 2 (new_i + new_j) / (old_i + old_j).
    Where old_i = old_j the first quotient is set to 1 if both values are kept, and to 0 if not: for a saturating shape
    that is not the derivative.
    """
    del old  # only the derivative needs them
    left, right = _vectors(stack)
    return (left * new[:, None, :].astype(left.dtype)) @ _adjoint(right)


@rebuild.defjvp
def _rebuild_jvp(primals: Any, tangents: Any) -> Any:
    stack, old, new = primals
    left, right = _vectors(stack)
    old, new, moved = (x.astype(accumulation_dtype(left.dtype)) for x in (old, new, tangents[2]))
    change = _wide(tangents[0])
    within = _adjoint(left) @ change @ right
    kept = (old == new).astype(old.dtype)
    both = kept[:, :, None] * kept[:, None, :]
    slope = _quotient(_outer(new, -new), _outer(old, -old), both, old)
    mean = _quotient(_outer(new, new), _outer(old, old), both, old)
    turned = 0.5 * (slope * (within + _adjoint(within)) + mean * (within - _adjoint(within)))
    turned = turned + _on_diagonal(moved - _diagonal(0.5 * slope * (within + _adjoint(within))).real)
    # For matrices that are not square: the part of the change outside the span of the singular vectors.
    side = _quotient(new, old, kept, old)[:, None, :].astype(left.dtype)
    rows = ((change @ right - left @ within) * side) @ _adjoint(right)
    columns = (left * side) @ (_adjoint(left) @ change - within @ _adjoint(right))
    return rebuild(stack, old, new), left @ turned @ _adjoint(right) + rows + columns


def _quotient(numerator: jax.Array, denominator: jax.Array, otherwise: jax.Array, old: jax.Array) -> jax.Array:
    """Return the quotient, or `otherwise` where the denominator is only rounding."""
    noise = 8 * jnp.finfo(old.dtype).eps * jnp.max(old, axis=1).reshape(-1, *(1,) * (denominator.ndim - 1))
    usable = jnp.abs(denominator) > noise
    return jnp.where(usable, ratio(numerator, jnp.where(usable, denominator, 1)), otherwise)


@jax.custom_jvp
def _svd(stack: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    left, values, right = jnp.linalg.svd(stack, full_matrices=False)
    return left, values, _adjoint(right)


@_svd.defjvp
def _svd_jvp(primals: Any, tangents: Any) -> Any:
    # JAX's formula, but 0 where equal values leave the vectors undetermined: there JAX returns NaN.
    left, values, right = _svd(*primals)
    change = tangents[0]
    within = _adjoint(left) @ change @ right
    gap = _outer(-values, values) * _outer(values, values)
    apart = jnp.abs(gap) > 8 * jnp.finfo(values.dtype).eps * jnp.square(jnp.max(values, axis=1))[:, None, None]
    inverse = jnp.where(apart, 1 / jnp.where(apart, gap, 1), 0)
    by_columns, by_rows = within * values[:, None, :], within * values[:, :, None]
    usable = (values > 0)[:, None, :]
    outside = jnp.where(usable, 1 / jnp.where(usable, values[:, None, :], 1), 0)
    dleft = left @ (inverse * (by_columns + _adjoint(by_columns))) + (change @ right - left @ within) * outside
    back = _adjoint(change) @ left - right @ _adjoint(within)
    dright = right @ (inverse * (by_rows + _adjoint(by_rows))) + back * outside
    return (left, values, right), (dleft, _diagonal(within).real, dright)


def _vectors(stack: jax.Array) -> tuple[jax.Array, jax.Array]:
    left, _, right = _svd(_scaled(stack)[0])
    return left, right


def _scaled(stack: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return matrices scaled to elements of at most 1, their largest elements, and whether they are finite."""
    wide, dtype = _wide(stack), accumulation_dtype(stack.dtype)
    largest = lax.stop_gradient(jnp.max(jnp.abs(wide), axis=(1, 2), keepdims=True, initial=0))
    largest = not_lost(largest, jnp.sum(shrunk(stack, *shrinking([stack])), axis=(1, 2), keepdims=True))
    usable = jnp.isfinite(largest) & (largest > 0)
    by = jnp.where(usable, largest, 1)
    # The inverse itself may underflow.
    shrink = jnp.where(by > 2.0**100, 2.0**-100, jnp.ones((), dtype))
    scaled = ratio(wide * shrink.astype(wide.dtype), (by * shrink).astype(wide.dtype))
    scaled = jnp.where(usable, scaled, jnp.zeros((), wide.dtype))
    return scaled, largest[:, :, 0], jnp.isfinite(largest)[:, :, 0]


def _wide(stack: jax.Array) -> jax.Array:
    return stack if jnp.iscomplexobj(stack) else stack.astype(accumulation_dtype(stack.dtype))


def _adjoint(stack: jax.Array) -> jax.Array:
    return jnp.conj(jnp.swapaxes(stack, 1, 2))


def _outer(rows: jax.Array, columns: jax.Array) -> jax.Array:
    return rows[:, :, None] + columns[:, None, :]


def _diagonal(stack: jax.Array) -> jax.Array:
    return jnp.diagonal(stack, axis1=1, axis2=2)


def _on_diagonal(values: jax.Array) -> jax.Array:
    return values[:, :, None] * jnp.eye(values.shape[1], dtype=values.dtype)
