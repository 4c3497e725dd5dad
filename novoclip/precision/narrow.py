"""Leaves of 16 bits: float32 views of them, and updates that change them to given values.

`optax.apply_updates` adds a float32 update to a 16-bit parameter in float32, and rounds the sum to 16 bits. The update
`target - parameter` therefore gives the target, with two exceptions. Where the target is smaller than about 2^-16 times
the parameter (float16: 2^-13), no float32 number gives it, and the sum is off by at most half a unit in the last place
of the parameter as float32. And devices that flush subnormal numbers compute with 0 in place of a bfloat16, or of a
difference of two, that is below 1.2e-38.
"""

from __future__ import annotations

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp


def is_narrow(leaf: Any) -> bool:
    """Whether a leaf is an array of bfloat16 or float16."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating) and jnp.finfo(leaf.dtype).bits == 16


def fixed(array: jax.Array) -> jax.Array:
    """Return an array that XLA does not simplify together with what it is computed from.

    It otherwise omits the rounding of a float32 to 16 bits that is converted back to float32.
    """
    return lax.optimization_barrier(array)


def stepped(wide: jax.Array, step: Any) -> jax.Array:
    """Return the sum of a float32 array and an update, rounded once.

    The update is clipped to the range of float32, which changes infinity alone. It is so that the last product in the
    update is rounded before the sum: a fused multiply and add, in one of two places that use the sum, would make
    them differ.
    """
    most = jnp.float32(jnp.finfo(jnp.float32).max)
    return fixed(wide + lax.clamp(-most, fixed(jnp.asarray(step, jnp.float32)), most))


def widened(leaf: Any) -> Any:
    """Return a 16-bit leaf as float32, and any other as it is."""
    return fixed(jnp.asarray(leaf)).astype(jnp.float32) if is_narrow(leaf) else leaf


def nearest(wide: jax.Array, dtype: Any) -> jax.Array:
    """Return float32 numbers rounded to the nearest of a 16-bit dtype, ties to even."""
    return fixed(wide.astype(dtype))


def bits_of(array: jax.Array) -> jax.Array:
    """Return the bits of an array of 16-bit or 32-bit numbers, as unsigned integers."""
    return lax.bitcast_convert_type(array, jnp.uint16 if array.dtype.itemsize == 2 else jnp.uint32)


def same(one: jax.Array, other: jax.Array) -> jax.Array:
    """Return where two 16-bit arrays are equal. By bits: a device may compare subnormal numbers as zeros."""
    bits, others = bits_of(one), bits_of(other)
    zeros = ((bits | others) & 0x7FFF) == 0
    return (bits == others) | zeros


def update_to(target: jax.Array, param: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the float32 update that changes a 16-bit parameter to a target, and what it is changed to.

    Args:
      target: what the parameter should become, in its dtype.
      param: the parameter.

    Returns:
      The update, and `param + update` as `optax.apply_updates` computes it: the target, except where the module says.
    """
    aim, start = widened(target), widened(param)
    most = float(jnp.finfo(jnp.float32).max)
    difference = aim - start
    finite = jnp.isfinite(aim) & jnp.isfinite(start)
    difference = jnp.where(finite, jnp.clip(difference, -most, most), difference)
    # Minus zero, since a parameter of minus zero plus zero is zero.
    update = fixed(jnp.where(same(target, param), jnp.float32(-0.0), difference))
    return update, nearest(start + update, target.dtype)


def fitting(structure: Any, updates: Any) -> list[Any]:
    """Return the gradients at the places of the parameters' leaves, or raise a ValueError that says what to give."""
    try:
        return list(structure.flatten_up_to(updates))
    except ValueError as error:
        msg = "the gradients do not fit the parameters: they must have the same structure, and None where there is no "
        msg += f"gradient: {error}"
        raise ValueError(msg) from error
