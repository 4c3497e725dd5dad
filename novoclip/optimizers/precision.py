"""Pytrees in the precision that an optimizer computes in, and the check of their shapes."""

from typing import Any

import jax
import jax.numpy as jnp

from novoclip.leaves import is_measured
from novoclip.paths import leaves_with_paths, some_of


def check_shapes(found: Any, expected: Any, name: str) -> None:
    """Raise if two pytrees of arrays differ in structure or shapes."""
    structure: Any = jax.tree.structure(found)
    if structure != jax.tree.structure(expected):
        msg = f"the gradients and the state do not fit {name}: one has the leaves {some_of(_paths(found))}, the other "
        msg += f"{some_of(_paths(expected))}: gradients must have the structure of the parameters given to init, and "
        msg += "the state must be made by the init of this optimizer"
        raise ValueError(msg)
    for (path, one), other in zip(leaves_with_paths(found), jax.tree.leaves(expected), strict=True):
        if one.shape != other.shape:
            msg = f"{path!r} has shape {one.shape} after this step and {other.shape} before: gradients "
            msg += "must have the shapes of the parameters given to init"
            raise ValueError(msg)


def _paths(tree: Any) -> list[Any]:
    return [path for path, _ in leaves_with_paths(tree)]


def measured_leaves(tree: Any) -> list[Any]:
    """Return the numeric leaves, as arrays."""
    return [
        jnp.asarray(leaf) if isinstance(leaf, float | int) else leaf
        for leaf in jax.tree.leaves(tree)
        if is_measured(leaf)
    ]


def in_precision(tree: Any, dtype: Any) -> Any:
    """Return the pytree in one precision, with None in place of leaves that are not numeric."""

    def wide(leaf: Any) -> Any:
        if not is_measured(leaf):
            return None
        leaf = jnp.asarray(leaf)
        complex_dtype = jnp.complex64 if dtype == jnp.float32 else jnp.complex128
        return leaf.astype(complex_dtype if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else dtype)

    return jax.tree.map(wide, tree)
