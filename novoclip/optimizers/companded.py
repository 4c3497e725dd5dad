"""Moments in 8 bits an element: codes on a scale that is finer near 0, with one float32 scale per 256 elements."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from novoclip.mesh import broadcast_like, zeros_like
from novoclip.precision.random_bits import random_fractions
from novoclip.safe_math import wide_ratio

BLOCK = 256
SIGNED, UNSIGNED = 127, 255  # the largest codes, in int8 and uint8


class Companded(NamedTuple):
    """An array in 8 bits an element, a pytree node.

    An element is its code on the scale x -> 2 x / (1 + |x|), where x is the element over the largest of its block. A
    block is 256 consecutive elements along the last axis; the last block of a row may be shorter. As no block crosses
    another axis, codes and scales are sharded along the first axes as the array is.

    Attributes:
      codes: the shape of the array; int8 in [-127, 127], or uint8 for an array without elements below 0.
      scales: float32 `(*shape[:-1], blocks)`, the largest absolute value of each block; NaN for a block with an element
        that is not finite.
    """

    codes: jax.Array
    scales: jax.Array


def encode(array: jax.Array, *, signed: bool = True, key: jax.Array | None = None) -> Companded:
    """Return a real array in 8 bits an element.

    The error of an element is at most about (1 + x)^2 / 508 of the largest element s of its block for x = |element| /
    s, and half of that if not signed: near 0 it is half of what codes at equal distances have. 0 and s are exact, up to
    the rounding of s to float32. Second moments v have to be given as sqrt(v), in which what is small compared to s is
    larger: with codes at equal distances, small ones would become 0, and steps would be divided by eps alone.

    Without a `key`, elements are rounded to the nearest code, and a running mean whose steps are smaller than half the
    distance of two codes never moves: with a decay rate of 0.999, elements of sqrt(v) whose gradients fall to a tenth,
    while others of their block do not fall, stay near ten times too large. With a `key`, an element becomes one of the
    two nearest codes at random, such that its expectation is right, and the mean follows.

    Args:
      array: real numbers; a scalar is one block.
      signed: whether there are elements below 0. If not, codes have one more bit, and an element above 0 never becomes
        0: the least is 1 / 509 of the largest of the block.
      key: a key of `jax.random` for random rounding, another one in each step; None to round to the nearest code. The
        error is then at most twice as large.

    Returns:
      A Companded.

    Raises:
      TypeError: if the array is not real.

    Example:
      >>> import jax.numpy as jnp
      >>> v = jnp.array([1.0, 1e-3, 0.0])
      >>> stored = encode(jnp.sqrt(v), signed=False)
      >>> print(stored.codes, stored.scales)
      [255  16   0] [1.]
      >>> print((decode(stored) ** 2).round(5))
      [1.      0.00105 0.     ]
      >>> print((jnp.round(127 * v) / 127).round(5))
      [1. 0. 0.]

    References:
      Ortiz et al., `FlashOptim: optimizers for memory efficient training <https://arxiv.org/abs/2602.23349>`_, 2026,
      which has this scale for m, and sqrt(v) at equal distances. Dettmers et al., `8-bit optimizers via block-wise
      quantization <https://arxiv.org/abs/2110.02861>`_, 2022, with codes of another form.
    """
    array = jnp.asarray(array)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        msg = f"array must be real, to be stored in 8 bits; got dtype {array.dtype}: leave such a moment as it is"
        raise TypeError(msg)
    wide = array.astype(jnp.promote_types(array.dtype, jnp.float32))
    sizes = jnp.abs(wide)
    largest = _largest(sizes)
    known = jnp.isfinite(largest)
    scales = jnp.minimum(jnp.where(known, largest, 0), jnp.finfo(jnp.float32).max).astype(jnp.float32)
    divisors = _spread(jnp.where(scales > 0, scales, 1).astype(wide.dtype), wide)
    # An element may be above the rounded scale, or not finite.
    part = jnp.clip(jnp.where(jnp.isfinite(sizes), wide_ratio(sizes, divisors), 0), 0, 1)
    part = jnp.where(_spread(scales, wide) > 0, part, 0)
    steps = _rounded(part, SIGNED if signed else UNSIGNED, key)
    if signed:
        codes = jnp.where(wide < 0, -steps, steps).astype(jnp.int8)
    else:
        codes = jnp.where(part > 0, jnp.maximum(steps, 1), 0).astype(jnp.uint8)
    return Companded(codes, jnp.where(known, scales, jnp.nan))


def decode(stored: Companded, dtype: Any = jnp.float32) -> jax.Array:
    """Return the array that `encode` stored, in a floating dtype of at least 32 bits.

    Args:
      stored: the Companded.
      dtype: float32 or float64.

    Returns:
      An array of the shape of the codes.

    Example:
      >>> import jax.numpy as jnp
      >>> print(decode(encode(jnp.array([-2.0, 0.5, 0.0]))).round(2))
      [-2.   0.5  0. ]
    """
    most = SIGNED if stored.codes.dtype == jnp.int8 else UNSIGNED
    codes = stored.codes.astype(dtype)
    return _expanded(codes, most) * _spread(stored.scales.astype(dtype), codes)


def companded_zeros(shapes: Any, *, signed: bool) -> Any:
    """Return a pytree of zeros in 8 bits, from ShapeDtypeStructs, created with their shardings.

    Zeros are plain for complex leaves, and for leaves whose rows have less than two elements: the scales would take as
    many bytes as is saved.
    """

    def zero(leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating) or not leaf.shape or leaf.shape[-1] < 2:
            return zeros_like(leaf, leaf.dtype if signed else jnp.finfo(leaf.dtype).dtype)
        rows = jax.ShapeDtypeStruct((*leaf.shape[:-1], _blocks(leaf.shape)), jnp.float32, sharding=_of_rows(leaf))
        return Companded(zeros_like(leaf, jnp.int8 if signed else jnp.uint8), zeros_like(rows))

    return jax.tree.map(zero, shapes)


def _expanded(codes: jax.Array, most: int) -> jax.Array:
    """Return |x| = y / (2 - y) for y = |code| / most, with the sign of the code."""
    return codes / (2 * most - jnp.abs(codes))


def _rounded(part: jax.Array, most: int, key: jax.Array | None) -> jax.Array:
    """Return the codes of numbers in [0, 1]."""
    exact = most * (2 * part / (1 + part))
    if key is None:
        return jnp.round(exact)
    below = jnp.minimum(jnp.floor(exact), most - 1)
    least, next_one = _expanded(below, most), _expanded(below + 1, most)
    up = least + random_fractions(key, part) * (next_one - least) < part
    return below + up.astype(part.dtype)


def _blocks(shape: tuple[int, ...]) -> int:
    return math.ceil(shape[-1] / BLOCK) if shape else 1


def _of_rows(leaf: Any) -> Any:
    """Return the sharding of a leaf's scales: that of the leaf, with the last axis whole."""
    sharding = getattr(leaf, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return None
    spec = (*sharding.spec, *(None,) * (len(leaf.shape) - len(sharding.spec)))
    return NamedSharding(sharding.mesh, PartitionSpec(*spec[:-1], None))


def _largest(sizes: jax.Array) -> jax.Array:
    """Return the largest element of each block."""
    rows = sizes.reshape(1) if sizes.ndim == 0 else sizes
    blocks = _blocks(rows.shape)
    if blocks <= 1:
        return jnp.max(rows, axis=-1, keepdims=True, initial=0)[..., :blocks]
    rows = jnp.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, blocks * BLOCK - rows.shape[-1])])
    return jnp.max(rows.reshape(*rows.shape[:-1], blocks, BLOCK), axis=-1)


def _spread(scales: jax.Array, array: jax.Array) -> jax.Array:
    """Return the scale of each element."""
    if array.ndim == 0:
        return scales.reshape(())
    if scales.shape[-1] <= 1:
        return broadcast_like(scales, array) if scales.shape[-1] else jnp.zeros(array.shape, scales.dtype)
    return jnp.repeat(scales, BLOCK, axis=-1)[..., : array.shape[-1]]
