"""Clipping of numbers at limits from an optimizer's own second moment v, of which it keeps the root."""

from typing import Any

import jax
import jax.numpy as jnp

from novoclip.measure import resolve_measure
from novoclip.optimizers.moments import Decay, ones_average, over_tensors, root_average
from novoclip.safe_math import ratio

TENSORS = resolve_measure("tensor")


def clipped_at(gradients: Any, limits: Any) -> Any:
    """Return the gradients with each modulus cut off at its limit."""

    def one(g: jax.Array, limit: jax.Array) -> jax.Array:
        size = jnp.abs(g)
        if jnp.issubdtype(g.dtype, jnp.complexfloating):
            return g * ratio(jnp.minimum(size, limit), jnp.where(size > 0, size, 1))
        return jnp.clip(g, -limit, limit)

    return jax.tree.map(one, gradients, limits)


def inverse(gradients: Any, root: Any, per: str, decay: Decay, c: jax.Array) -> tuple[Any, Any]:
    """Return the gradients clipped at c / sqrt(v), and sqrt(v), which learned from them before."""
    root = root_average(sizes_of(gradients, per), root, decay)

    def limit(r: jax.Array) -> jax.Array:
        return jnp.where(r > 0, ratio(c, jnp.where(r > 0, r, 1)), jnp.inf)

    return clipped_at(gradients, jax.tree.map(limit, each_of(root, gradients, per))), root


def proportional(gradients: Any, root: Any, per: str, decay: Decay, k: jax.Array, weight: jax.Array) -> tuple[Any, Any]:
    """Return the gradients clipped at k sqrt(v), and sqrt(v), which learned from the result."""
    before, after = (jnp.sqrt(w) for w in (weight, ones_average(weight, decay)))

    def limit(r: jax.Array, g: jax.Array) -> jax.Array:
        # Per tensor, v is a sum over the numbers: a number is compared with their root mean square.
        typical = r / jnp.where(before > 0, before, 1) / (1 if per == "element" else max(g.size, 1) ** 0.5)
        return jnp.where(r > 0, k * typical, jnp.inf)

    def learn(new: jax.Array, old: jax.Array, size: jax.Array) -> jax.Array:
        # Zeros are passed over, and the first other number counts in full: else v would begin far too low.
        return jnp.where(size > 0, jnp.where(old > 0, new, after * size), old)

    clipped = clipped_at(gradients, jax.tree.map(limit, each_of(root, gradients, per), gradients))
    sizes = sizes_of(clipped, per)
    return clipped, jax.tree.map(learn, root_average(sizes, root, decay), root, sizes)


def sizes_of(gradients: Any, per: str) -> Any:
    """Return what v averages: moduli, or the tensors' norms."""
    return jax.tree.map(jnp.abs, gradients) if per == "element" else TENSORS.norms(gradients)


def each_of(root: Any, like: Any, per: str) -> Any:
    """Return sqrt(v) as a tree like the gradients."""
    return root if per == "element" else over_tensors(root, like)
