"""Moments as a state keeps them, in fewer bits than a step computes in."""

from typing import Any

import jax
import jax.numpy as jnp

from novoclip.leaves import narrow
from novoclip.optimizers.companded import Companded, decoded, encoded_like
from novoclip.optimizers.precision import in_precision
from novoclip.optimizers.selection import unless


def is_eight_bits(dtype: Any) -> bool:
    """Whether a dtype stands for moments in 8 bits: "int8"."""
    return dtype is not None and jnp.dtype(dtype) == jnp.int8


def check_dtype(name: str, dtype: Any, *, eight_bits: bool = False) -> None:
    """Raise unless `dtype` is None, names a floating dtype, or where that is possible, is "int8"."""
    if dtype is None or jnp.issubdtype(jnp.dtype(dtype), jnp.floating) or (eight_bits and is_eight_bits(dtype)):
        return
    msg = f"{name} must be a floating dtype or None; got {dtype!r}"
    if is_eight_bits(dtype):
        msg += ": moments in 8 bits are those of adam, adamw, novograd, momentum and sgd"
    raise TypeError(msg)


def check_dtypes(**dtypes: Any) -> None:
    """Raise as `check_dtype` does, for several arguments."""
    for name, dtype in dtypes.items():
        check_dtype(name, dtype)


def as_computed(moments: Any, dtype: Any) -> Any:
    """Return the moments of a state as arrays of the precision of a step."""
    return in_precision(decoded(moments, dtype), dtype)


def as_kept(moments: Any, old: Any, steps: jax.Array, skipped: jax.Array | None) -> Any:
    """Return the moments of a step in the form and the dtypes of those in the state before.

    Moments in 8 bits are rounded at random, by a key of the step. Of a step that is skipped they are the old ones, bit
    for bit.
    """
    eight = any(isinstance(leaf, Companded) for leaf in jax.tree.leaves(old, is_leaf=_is_companded))
    if not eight:
        return jax.tree.map(lambda new, before: narrow(new, before.dtype), moments, old)
    stored = encoded_like(moments, old, jax.random.fold_in(jax.random.key(0), steps))

    def fitting(new: Any, before: Any) -> Any:
        if isinstance(before, Companded):
            return unless(skipped, new, before)
        return narrow(new, before.dtype)

    return jax.tree.map(fitting, stored, old, is_leaf=_is_companded)


def _is_companded(node: Any) -> bool:
    return isinstance(node, Companded)
