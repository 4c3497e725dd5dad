"""Clipping of numbers at limits from an optimizer's own second moment v, of which it keeps the root."""

from typing import Any

import jax
import jax.numpy as jnp

from novoclip.leaves import path_name
from novoclip.measure import resolve_measure
from novoclip.mesh import leaf_axes, shards
from novoclip.optimizers.moments import Decay, block_sizes, ones_average, over_tensors, root_average
from novoclip.safe_math import ratio

ELEMENTS = resolve_measure("element")
TENSORS = resolve_measure("tensor")


def clipped_at(gradients: Any, limits: Any) -> Any:
    """Return the gradients with each modulus cut off at its limit."""
    sizes = jax.tree.map(jnp.abs, gradients)
    return ELEMENTS.rescale(gradients, sizes, jax.tree.map(jnp.minimum, sizes, limits))


def inverse(gradients: Any, root: Any, per: str, decay: Decay, c: jax.Array) -> tuple[Any, Any]:
    """Return the gradients clipped at c / sqrt(v), and sqrt(v), which learned from them before."""
    root = root_average(sizes_of(gradients, per), root, decay)

    def limit(r: jax.Array) -> jax.Array:
        return jnp.where(r > 0, ratio(c, jnp.where(r > 0, r, 1)), jnp.inf)

    return clipped_at(gradients, jax.tree.map(limit, each_of(root, gradients, per))), root


def proportional(gradients: Any, root: Any, weight: Any, per: str, decay: Decay, k: jax.Array) -> tuple[Any, Any, Any]:
    """Return the gradients clipped at k sqrt(v / weight), then sqrt(v) and the weights, learned from the result."""

    def limit(path: Any, g: jax.Array, r: jax.Array, w: jax.Array) -> jax.Array:
        # Per tensor, v is a sum over the numbers: a number is compared with their root mean square.
        count = 1 if per == "element" else max(g.size * shards(leaf_axes(path_name(path), g)), 1)
        return jnp.where(w > 0, k * r / jnp.sqrt(jnp.where(w > 0, w, 1) * count), jnp.inf)

    def learn(new: jax.Array, old: jax.Array, size: jax.Array) -> jax.Array:
        # Zeros are passed over, or a number that is rarely anything else would be held near 0.
        return jnp.where(size > 0, new, old)

    roots, weights = each_of(root, gradients, per), each_of(weight, gradients, per)
    limits = jax.tree_util.tree_map_with_path(limit, gradients, roots, weights)
    clipped = clipped_at(gradients, limits)
    sizes = sizes_of(clipped, per)
    weights = jax.tree.map(lambda w: ones_average(w, decay), weight)
    return (
        clipped,
        jax.tree.map(learn, root_average(sizes, root, decay), root, sizes),
        jax.tree.map(learn, weights, weight, sizes),
    )


def sizes_of(gradients: Any, per: str) -> Any:
    """Return what v averages: moduli, or the tensors' norms."""
    return jax.tree.map(jnp.abs, gradients) if per == "element" else block_sizes(TENSORS, gradients)


def each_of(root: Any, like: Any, per: str) -> Any:
    """Return sqrt(v) as a tree like the gradients."""
    return root if per == "element" else over_tensors(root, like)
