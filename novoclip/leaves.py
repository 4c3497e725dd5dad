"""Leaves of gradient trees: which of them hold numbers, what they are called, whether they are finite."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import optax

from novoclip.mesh import across_devices, leaf_axes

NamedLeaf = tuple[str, jax.Array]


def is_measured(leaf: Any) -> bool:
    """Whether a leaf takes part in norms: real or complex numbers do, integers and float0 do not."""
    # Typed keys of random numbers, in some states, have no result type.
    return jnp.issubdtype(leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf), jnp.inexact)


def narrow(leaf: jax.Array, dtype: Any) -> jax.Array:
    """Return the leaf in another dtype; finite numbers beyond its range become its largest."""
    if jnp.finfo(dtype).bits < jnp.finfo(leaf.dtype).bits and not jnp.issubdtype(dtype, jnp.complexfloating):
        largest = jnp.asarray(jnp.finfo(dtype).max, leaf.dtype)
        leaf = jnp.where(jnp.isinf(leaf), leaf, jnp.clip(leaf, -largest, largest))
    return leaf.astype(dtype)


def path_name(path: Any) -> str:
    """Return "a/b/kernel" for a path in a tree, without the ".value" of Flax's nnx variables."""
    if path and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> list[NamedLeaf]:
    """Return the leaves that hold numbers, with their paths."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    return [(path_name(path), jnp.asarray(leaf)) for path, leaf in found if is_measured(leaf)]


def entry_for(prefix: Any, argument: str) -> Callable[[str, Any], Any]:
    """Return the function of (path, leaf) that finds the entry of a tree which is a prefix of the parameters.

    Raises:
      ValueError: in use, if it has no entry for a leaf: then what it names is not what was meant.
    """
    entries = {path_name(path): entry for path, entry in jax.tree_util.tree_leaves_with_path(prefix)}

    def find(name: str, _: Any) -> Any:
        # An entry holds for all leaves below its path.
        parts = name.split("/")
        for end in range(len(parts), -1, -1):
            if (path := "/".join(parts[:end])) in entries:
                return entries[path]
        msg = f"{argument} has no entry for {name!r}, but for {', '.join(map(repr, entries)) or 'nothing'}"
        raise ValueError(msg)

    return find


def reject_integers(updates: optax.Updates) -> None:
    """Raise if a gradient is of integers, and name it."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(updates):
        if not is_measured(leaf) and jnp.result_type(leaf) != jax.dtypes.float0:
            msg = f"gradients must be real or complex numbers; {path_name(path)!r} has dtype {jnp.result_type(leaf)}"
            raise TypeError(msg)


def finite_leaves(tree: Any) -> jax.Array:
    """Return a vector of booleans: which of the leaves with numbers hold only finite ones."""
    leaves = named_leaves(tree)
    totals = across_devices([_finite_total(leaf) for _, leaf in leaves], [leaf_axes(*x) for x in leaves], jnp.sum)
    return jnp.isfinite(jnp.stack(totals)) if leaves else jnp.zeros((0,), bool)


def all_finite(tree: Any) -> jax.Array:
    """Return whether all numbers of a tree are finite."""
    return jnp.all(finite_leaves(tree))


def _finite_total(leaf: jax.Array) -> jax.Array:
    # x - x is 0, or NaN where x is not finite: arithmetic, which XLA's CPU backend does not write out.
    # Behind a barrier, or XLA shares the upcast of 16-bit leaves with what follows, and keeps a float32 copy.
    leaf = lax.optimization_barrier(leaf)
    total = jnp.sum(leaf - leaf)
    return (jnp.real(total) + jnp.imag(total)).astype(jnp.float32)
