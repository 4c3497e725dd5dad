"""Random bits for rounding: a hash of the position of each element, as a generator would take longer than the step."""

from __future__ import annotations

import math

import jax
from jax import lax
import jax.numpy as jnp

from novoclip.mesh import varying_axes, with_sharding_of


def random_bits(key: jax.Array, like: jax.Array, axes: tuple[str, ...] | None = None) -> jax.Array:
    """Return uint32 random bits, one number for each element of an array, with its sharding.

        bits_i = mix(mix(i xor a) + b),  a, b = jax.random.bits(key, (2,))

    i is the number of the element, modulo 2^32, so that it has the same bits however the array is sharded by `jax.jit`.
    In `jax.shard_map`, shards have different bits, by their index along the mesh axes that the array varies over. mix
    is a bijection of 32-bit integers in which each bit of the input changes half of those of the output. That suffices
    to round numbers, and took a tenth of the time of Threefry or less on a CPU; it is no generator for other purposes.

    Args:
      key: a key of `jax.random`, another one for each step and each array.
      like: the array.
      axes: the mesh axes whose devices hold different shards; None for those that JAX knows of.

    Returns:
      uint32, of the shape of the array.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> bits = random_bits(jax.random.key(0), jnp.zeros(100_000))
      >>> print(bits.dtype, round(float((bits / 2.0**32).mean()), 2))
      uint32 0.5

    References:
      Wellons, `Prospecting for hash functions <https://nullprogram.com/blog/2018/07/31/>`_, 2018, for the constants.
    """
    for name in varying_axes(like) if axes is None else axes:
        key = jax.random.fold_in(key, lax.axis_index(name))
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    index = jnp.zeros(like.shape, jnp.uint32)
    for axis, size in enumerate(like.shape):
        if size > 1:
            stride = math.prod(like.shape[axis + 1 :]) % 2**32
            index += lax.broadcasted_iota(jnp.uint32, like.shape, axis) * jnp.uint32(stride)
    return with_sharding_of(_mixed(_mixed(index ^ first) + second), like)


def random_fractions(key: jax.Array, like: jax.Array) -> jax.Array:
    """Return random numbers in [0, 1), multiples of 2^-24, of the shape, the dtype and the sharding of an array."""
    return (random_bits(key, like) >> 8).astype(like.dtype) * jnp.asarray(2.0**-24, like.dtype)


def _mixed(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
