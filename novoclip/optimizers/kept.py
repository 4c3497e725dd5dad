"""Moments as a state keeps them, in fewer bits than a step computes in."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp

from novoclip.leaves import narrow
from novoclip.optimizers.bfloat16 import is_rounded, rounded_as
from novoclip.optimizers.companded import Companded, decode, encode
from novoclip.optimizers.precision import in_precision
from novoclip.optimizers.selection import unless

STOCHASTIC = "bfloat16_stochastic"
OF_MOMENTS = 0x6D6F6D65  # a seed: weights that are rounded at random have others, usually 0
TAKEN = f'write "float32", "bfloat16" (rounded to nearest), "{STOCHASTIC}" (rounded at random) or "int8"'


def is_eight_bits(dtype: Any) -> bool:
    """Whether a dtype stands for moments in 8 bits: "int8"."""
    return _known(dtype) == jnp.int8


def is_stochastic(dtype: Any) -> bool:
    """Whether a dtype stands for moments in bfloat16 that are rounded at random: "bfloat16_stochastic"."""
    return isinstance(dtype, str) and dtype == STOCHASTIC


def check_dtype(name: str, dtype: Any, *, random: bool = False) -> None:
    """Raise unless `dtype` is None, names a floating dtype, or with `random` a form that is rounded at random."""
    kind = "in 8 bits" if is_eight_bits(dtype) else "with stochastic rounding" if is_stochastic(dtype) else ""
    known = _known(dtype)
    if dtype is None or (kind and random) or (known is not None and jnp.issubdtype(known, jnp.floating)):
        return
    msg = f"{name} must be a floating dtype or None; got {dtype!r}: "
    if kind:
        msg += f"moments {kind} are those of adam, adamw, novograd, momentum and sgd"
    else:
        msg += TAKEN if random else 'write "float32", "bfloat16" or "float16"'
    raise TypeError(msg)


def check_dtypes(**dtypes: Any) -> None:
    """Raise as `check_dtype` does, for several arguments."""
    for name, dtype in dtypes.items():
        check_dtype(name, dtype)


def as_computed(moments: Any, dtype: Any) -> Any:
    """Return the moments of a state as arrays of the precision of a step."""

    def plain(node: Any) -> Any:
        if isinstance(node, Companded):
            return decode(node, dtype)
        return node.elements if is_rounded(node) else node

    return in_precision(jax.tree.map(plain, moments, is_leaf=_is_random), dtype)


def as_kept(moments: Any, old: Any, steps: jax.Array, skipped: jax.Array | None) -> Any:
    """Return the moments of a step in the form and the dtypes of those in the state before.

    Those in 8 bits, or in bfloat16 with stochastic rounding, are rounded at random, by a key of the step and of how
    many such leaves come before. Of a step that is skipped they are the old ones, bit for bit.
    """
    if not any(map(_is_random, jax.tree.leaves(old, is_leaf=_is_random))):
        return jax.tree.map(lambda new, before: narrow(new, before.dtype), moments, old)
    leaf_number = itertools.count()

    def fitting(before: Any, new: Any) -> Any:
        if not _is_random(before):
            return narrow(new, before.dtype)
        own = jax.random.fold_in(key, next(leaf_number))
        if isinstance(before, Companded):
            return unless(skipped, encode(new, signed=before.codes.dtype == jnp.int8, key=own), before)
        return unless(skipped, rounded_as(before, new, own), before)

    with jax.threefry_partitionable(True):  # whatever the setting is
        key = jax.random.fold_in(jax.random.key(OF_MOMENTS, impl="threefry2x32"), steps)
        return jax.tree.map(fitting, old, moments, is_leaf=_is_random)


def _known(dtype: Any) -> Any:
    """Return the dtype that a name or class stands for; None if there is none."""
    try:
        return None if dtype is None else jnp.dtype(dtype)
    except TypeError:
        return None


def _is_random(node: Any) -> bool:
    return isinstance(node, Companded) or is_rounded(node)
