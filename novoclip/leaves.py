"""Leaves of gradient pytrees: which are numeric, what their paths are, and whether they are finite."""

from collections.abc import Iterable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from novoclip.alike import alike, in_order, stacked
from novoclip.mesh import across_devices, leaf_axes
from novoclip.paths import Path, leaves_with_paths
from novoclip.ranges import common_dtype
from novoclip.safe_math import shrinking, shrunk

NamedLeaf = tuple[Path, jax.Array]


def is_measured(leaf: Any) -> bool:
    """Whether a leaf is numeric, and so part of norms: a real or complex array or number.

    Integers, float0, functions, strings and other leaves of a model are not.
    """
    if hasattr(leaf, "dtype"):
        return jnp.issubdtype(leaf.dtype, jnp.inexact)
    return isinstance(leaf, float | complex)


def unwrapped(leaf: Any) -> Any:
    """Return the array in a Variable, in which Flax's nnx.Optimizer wraps each array of its state; else the leaf."""
    return leaf[...] if hasattr(leaf, "get_value") else leaf


def narrow(leaf: jax.Array, dtype: Any) -> jax.Array:
    """Return the leaf in another dtype. Finite elements beyond the range of the dtype are clipped to it."""
    if jnp.finfo(dtype).bits < jnp.finfo(leaf.dtype).bits and not jnp.issubdtype(dtype, jnp.complexfloating):
        largest = jnp.asarray(jnp.finfo(dtype).max, leaf.dtype)
        leaf = jnp.where(jnp.isinf(leaf), leaf, jnp.clip(leaf, -largest, largest))
    return leaf.astype(dtype)


def named_leaves(tree: Any) -> list[tuple[Path, Any]]:
    """Return the numeric leaves, with their paths."""
    return [
        (path, leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.asarray(leaf))
        for path, leaf in leaves_with_paths(tree)
        if is_measured(leaf)
    ]


def with_numbers(tree: Any, numbers: Iterable[Any]) -> Any:
    """Return the pytree with its numeric leaves replaced, in order."""
    rest = iter(numbers)
    return jax.tree.map(lambda leaf: next(rest) if is_measured(leaf) else leaf, tree)


def reject_integers(updates: optax.Updates) -> None:
    """Raise a TypeError that names the leaf if a gradient is not real or complex."""
    for path, leaf in leaves_with_paths(updates):
        if not is_measured(leaf) and getattr(leaf, "dtype", None) != jax.dtypes.float0:
            kind = f"dtype {jnp.result_type(leaf)}" if hasattr(leaf, "dtype") else repr(leaf)
            msg = f"gradients must be real or complex numbers; {path!r} has {kind}"
            raise TypeError(msg)


def finite_leaves(tree: Any) -> jax.Array:
    """Return a vector of booleans: which of the numeric leaves are finite."""
    leaves = named_leaves(tree)
    if not leaves:
        return jnp.zeros((0,), bool)
    arrays, over = [leaf for _, leaf in leaves], [leaf_axes(*leaf) for leaf in leaves]
    groups, dtype = alike(arrays, over, alone=[bool(axes) for axes in over]), common_dtype(arrays)
    stacks = stacked(arrays, groups)
    parts = [
        _shrunk_sums(stack, factor, dtype, stack=len(places) > 1)
        for stack, factor, places in zip(stacks, shrinking(stacks), groups, strict=True)
    ]
    return jnp.isfinite(in_order(across_devices(parts, [over[places[0]] for places in groups], jnp.sum), groups))


@functools.partial(jax.jit, static_argnames=("dtype", "stack"))
def _shrunk_sums(leaf: jax.Array, factor: jax.Array, dtype: Any, *, stack: bool) -> jax.Array:
    """Return a sum that is finite if and only if the leaf is, or with `stack` one for each of the stacked leaves."""
    sums = jnp.sum(shrunk(leaf, factor), axis=tuple(range(int(stack), leaf.ndim)))
    return sums.astype(dtype).reshape(-1)
