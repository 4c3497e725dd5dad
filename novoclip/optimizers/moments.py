"""Running averages of pytrees, and division by their roots."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from novoclip.measure import Measure
from novoclip.mesh import broadcast_like, zeros_like
from novoclip.optimizers.bfloat16 import rounded_zeros
from novoclip.optimizers.companded import companded_zeros
from novoclip.optimizers.kept import is_eight_bits, is_stochastic
from novoclip.optimizers.step import Epsilon
from novoclip.safe_math import hypotenuse, ratio, wide_ratio

Decay = tuple[jax.Array, jax.Array]  # (b, 1 - b)


def zeros(shapes: Any, dtype: Any = None) -> Any:
    """Return a pytree of zeros, complex where the shapes are; in the form that a name such as "int8" stands for."""
    if is_eight_bits(dtype):
        return companded_zeros(shapes, signed=True)
    if is_stochastic(dtype):
        return rounded_zeros(shapes, root=False)

    def zero(leaf: Any) -> jax.Array:
        keep = dtype is None or jnp.issubdtype(leaf.dtype, jnp.complexfloating)
        return zeros_like(leaf, None if keep else dtype)

    return jax.tree.map(zero, shapes)


def real_zeros(shapes: Any, dtype: Any = None) -> Any:
    """Return a pytree of real zeros, for roots; in the form that a name such as "int8" stands for."""
    if is_eight_bits(dtype):
        return companded_zeros(shapes, signed=False)
    if is_stochastic(dtype):
        return rounded_zeros(shapes, root=True)
    return jax.tree.map(lambda leaf: zeros_like(leaf, dtype or jnp.finfo(leaf.dtype).dtype), shapes)


def first_roots(shapes: Any, dtype: Any, value: Any) -> Any:
    """Return a pytree of the root of a number, in new arrays."""
    first = jnp.sqrt(jnp.asarray(value))
    return jax.tree.map(lambda x: x + first.astype(x.dtype), real_zeros(shapes, dtype))


def scalar(shapes: Any) -> jax.Array:
    """Return a scalar 0 in the precision of the pytree."""
    leaves = jax.tree.leaves(shapes)
    return jnp.zeros((), jnp.finfo(leaves[0].dtype).dtype if leaves else jnp.float32)


# Each takes one leaf and has its own jit: leaves of one shape are traced once, and without jit each is one program.


@jax.jit
def _mean(new: jax.Array, old: jax.Array, kept: jax.Array, taken: jax.Array) -> jax.Array:
    return kept * old + taken * new


@jax.jit
def _root_mean(new: jax.Array, root: jax.Array, kept: jax.Array, taken: jax.Array) -> jax.Array:
    return hypotenuse(kept * root, taken * jnp.abs(fitting(new, root)))


@functools.partial(jax.jit, static_argnames="above_zero")
def _quotient(
    numerator: jax.Array,
    root: jax.Array,
    eps: jax.Array,
    inside: jax.Array | None,
    by: jax.Array | None,
    *,
    above_zero: bool,
) -> jax.Array:
    if inside is not None:
        root = jnp.where(inside > 0, hypotenuse(root, broadcast_like(inside, root)), root)
    size = root + eps
    numerator = numerator if by is None else by * numerator
    # Where one size divides many elements, XLA multiplies by its inverse, which may be flushed to 0.
    quotient = ratio if size.shape == numerator.shape else wide_ratio
    if above_zero:
        return quotient(numerator, size)
    empty = size == 0  # and not `size > 0`, which would turn NaN into 0
    return quotient(jnp.where(broadcast_like(empty, numerator), 0, numerator), jnp.where(empty, 1, size))


def average(new: Any, old: Any, decay: Decay) -> Any:
    """Return b old + (1 - b) new."""
    return jax.tree.map(lambda x, m: _mean(x, m, *decay), new, old)


def ones_average(weight: jax.Array, decay: Decay) -> jax.Array:
    """Return the running average of ones, 1 - b_1 b_2 ... b_t: what a bias correction divides by."""
    return decay[0] * weight + decay[1]


def debiased(tree: Any, weight: jax.Array) -> Any:
    """Return the pytree divided by the weight, unless that is 0: while nothing was learned, or the decay is 1."""
    by = jnp.where(weight > 0, weight, 1)
    return jax.tree.map(lambda x: x / by, tree)


def over_root(root: Any, weight: Any) -> Any:
    """Return root / sqrt(weight), with one weight for all leaves, or one for each."""
    if isinstance(weight, jax.Array) and weight.ndim == 0:
        return debiased(root, jnp.sqrt(weight))
    return jax.tree.map(lambda r, w: r / jnp.sqrt(jnp.where(w > 0, w, 1)), root, weight)


def root_average(new: Any, root: Any, decay: Decay) -> Any:
    """Return sqrt(b root^2 + (1 - b) |new|^2), without squares that overflow or underflow."""
    kept, taken = jnp.sqrt(decay[0]), jnp.sqrt(decay[1])
    return jax.tree.map(lambda x, r: _root_mean(x, r, kept, taken), new, root)


def root_sum(new: Any, root: Any) -> Any:
    """Return sqrt(root^2 + |new|^2), and the larger of the two where that is beyond the range of the dtype."""

    def add(old: jax.Array, size: Any) -> jax.Array:
        size = jnp.abs(fitting(size, old))
        total = hypotenuse(old, size)
        # Not the minimum of it and a number, which XLA's CPU backend computes twice, with a copy of the old root.
        return jnp.where(total < jnp.inf, total, jnp.maximum(old, size))

    return jax.tree.map(add, root, new)


def fitting(new: jax.Array, old: jax.Array) -> jax.Array:
    """Return `new`, or raise if its shape is not that of `old`: a gradient has another shape, or is missing."""
    if getattr(new, "shape", None) != old.shape:
        found = "no gradient" if new is None else f"a gradient of shape {new.shape}"
        msg = f"there is {found} where the state has an array of shape {old.shape}"
        raise ValueError(msg)
    return new


def divide(
    numbers: Any, roots: Any, eps: Epsilon, eps_root: jax.Array | None = None, by: jax.Array | None = None
) -> Any:
    """Return by * numbers / (sqrt(roots^2 + eps_root) + eps), and 0 where that is 0 / 0.

    `by` is 1 by default, `eps_root` 0.
    """
    inside = None if eps_root is None else jnp.sqrt(eps_root)
    quotient = functools.partial(_quotient, above_zero=eps.above_zero)
    return jax.tree.map(lambda x, root: quotient(x, root, eps.value, inside, by), numbers, roots)


def block_sizes(measure: Measure, tree: Any) -> Any:
    """Return the norms of blocks, at most the largest number of their dtype: norms of finite elements may overflow."""
    return jax.tree.map(lambda norms: jnp.minimum(norms, jnp.finfo(norms.dtype).max), measure.norms(tree))
