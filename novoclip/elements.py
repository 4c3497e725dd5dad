"""Each element as a block: absolute values, and their replacement."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from novoclip.blocks import rescale_leaves
from novoclip.layout import Layout
from novoclip.leaves import is_measured
from novoclip.ranges import accumulation_dtype


def absolute_values(tree: optax.Updates) -> optax.Updates:
    """Return the pytree of absolute values, in at least float32, with None in place of leaves that are not numeric."""

    def size(leaf: Any) -> jax.Array | None:
        if not is_measured(leaf):
            return None
        sizes = jnp.abs(jnp.asarray(leaf))
        return sizes.astype(accumulation_dtype(sizes.dtype))

    return jax.tree.map(size, tree)


def replace_absolute_values(tree: optax.Updates, old: Any, new: Any) -> optax.Updates:
    """Return the pytree with the absolute values `new` instead of `old`, and the same signs and phases."""
    sizes = iter(zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True))

    def replace(leaf: Any) -> Any:
        if not is_measured(leaf):
            return leaf
        leaf = jnp.asarray(leaf)
        before, after = next(sizes)
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            return _replace_modulus(leaf, before, after)
        # A limit beyond the range of the leaf's dtype must not make a clipped infinity infinite again.
        held = jnp.minimum(after, jnp.asarray(jnp.finfo(leaf.dtype).max, after.dtype))
        wide = jnp.copysign(held, leaf.astype(after.dtype)).astype(leaf.dtype)
        # Unchanged elements are returned bit for bit, with a derivative of 1, also at 0.
        return jnp.where(before == after, leaf, wide)

    return jax.tree.map(replace, tree)


def _replace_modulus(leaf: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
    # An element whose modulus is infinite has no phase to keep.
    new = jnp.where(jnp.isinf(old), 0, new)
    return rescale_leaves([leaf], Layout((0,), ((),), "scalar"), old, new)[0]
