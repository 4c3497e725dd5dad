"""The bits of a float32 number that a bfloat16 lacks, in an int16 or an int8.

Bits are those of the sign and magnitude, so the bfloat16 plus the remainder, in units of the last place, is a sum of
integers. Rounding is to the nearest bfloat16, with ties away from zero: then each remainder is one of 65536.
"""

from __future__ import annotations

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from novoclip.precision.narrow import bits_of

NAN, INFINITY, MAGNITUDE = 0x7FC0, 0x7F80, 0x7FFF  # of a bfloat16


def split(wide: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Return a float32 array as bfloat16, and the remainder as int16 or int8.

    An int16 holds all bits; with an int8 the number is first rounded to 16 significant bits.
    """
    width = 8 * jnp.dtype(dtype).itemsize
    bits = bits_of(wide)
    if width == 8:
        bits = (bits + 0x7F + ((bits >> 8) & 1)) >> 8  # to the nearest, ties to even
    half, mask = 1 << (width - 1), (1 << width) - 1
    upper = ((bits + half) >> width).astype(jnp.uint16)
    lower = lax.bitcast_convert_type((bits & mask).astype(f"uint{width}"), dtype)
    # Where the upper bits would carry, in a NaN, or the lower ones distinguish it from infinity.
    lost = (bits_of(wide) & 0x7FFFFFFF) > 0x7F800000
    upper = jnp.where(lost, jnp.uint16(NAN), upper)
    return lax.bitcast_convert_type(upper, jnp.bfloat16), jnp.where(lost, jnp.zeros((), dtype), lower)


def joined(param: jax.Array, remainder: jax.Array) -> jax.Array:
    """Return the float32 array that `split` was given, rounded to 16 significant bits if the remainder is int8.

    The remainder of a parameter that is zero or not finite is ignored unless it is that of a small number: of another
    parameter, it would give a NaN.
    """
    upper = bits_of(param)
    shift = 16 - 8 * jnp.dtype(remainder.dtype).itemsize
    offset = lax.bitcast_convert_type(remainder.astype(jnp.int32) << shift, jnp.uint32)
    magnitude = upper & MAGNITUDE
    ignored = (magnitude >= INFINITY) | ((magnitude == 0) & (remainder < 0))
    offset = jnp.where(ignored, jnp.uint32(0), offset)
    return lax.bitcast_convert_type((upper.astype(jnp.uint32) << 16) + offset, jnp.float32)
