"""Clipping of elements at limits from an optimizer's own second moment v, of which it keeps the root."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from novoclip.measure import ELEMENTS, Measure
from novoclip.optimizers.moments import Decay, block_sizes, ones_average, root_average
from novoclip.ranges import no_limit
from novoclip.safe_math import wide_ratio
from novoclip.shapes import hard
from novoclip.written import kept_apart, written_in_turn

CLIPPING = {"inverse": 1.0, "proportional": 3.0}  # by default


def clipped_at(gradients: Any, limits: Any) -> Any:
    """Return the gradients with each modulus clipped at its limit."""
    sizes = jax.tree.map(jnp.abs, gradients)
    return ELEMENTS.rescale(gradients, sizes, jax.tree.map(hard, sizes, limits))


def inverse(gradients: Any, root: Any, blocks: Measure, c: jax.Array) -> Any:
    """Return the gradients clipped at c / sqrt(v), where v was updated with them before."""

    def limit(r: jax.Array) -> jax.Array:
        return jnp.where(r > 0, wide_ratio(c, jnp.where(r > 0, r, 1)), no_limit(r.dtype))

    return clipped_at(gradients, blocks.spread(jax.tree.map(limit, root), gradients))


def proportional(gradients: Any, state: Any, blocks: Measure, k: jax.Array) -> Any:
    """Return the gradients clipped at k sqrt(v / weight), with v and its weights from the state before."""
    limits = jax.tree.map(functools.partial(_limit, k), state.root, state.root_weight, blocks.counts(gradients))
    return clipped_at(gradients, blocks.spread(limits, gradients))


# These two are traced once for leaves of one shape.


@jax.jit
def _limit(k: jax.Array, root: jax.Array, weight: jax.Array, count: jax.Array) -> jax.Array:
    # v is a sum over a block's elements: each is compared with their root mean square. A root that underflowed is none.
    some = (weight > 0) & (root > 0)
    return jnp.where(some, k * (root / jnp.sqrt(jnp.where(some, weight, 1) * count)), no_limit(root.dtype))


@jax.jit
def _if_not_zero(size: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    # Zeros are skipped. Otherwise the limit of an element that is rarely nonzero would stay near 0.
    return jnp.where(size > 0, new, old)


def root_after(gradients: Any, state: Any, before: Any, blocks: Measure, decay: Decay, k: jax.Array) -> Any:
    """Return the state with sqrt(v), and per block its weights, updated with the gradients that `proportional` returns.

    For elements, the new m in the state depends on the old ones, and `weight_after` has the weights.
    """
    again = before
    if blocks.elementwise:
        # Computed once more, apart: otherwise XLA writes out what m and the root share.
        root, weight = (jax.tree.map(kept_apart, tree) for tree in (before.root, before.root_weight))
        again = before._replace(root=root, root_weight=weight)
    sizes = block_sizes(blocks, proportional(gradients, again, blocks, k))
    root = jax.tree.map(_if_not_zero, sizes, root_average(sizes, again.root, decay), again.root)
    if blocks.elementwise:
        return state._replace(root=_after(state.mu, root, before.root))
    return state._replace(root=root, root_weight=_weights(sizes, before.root_weight, decay))


def weight_after(gradients: Any, state: Any, before: Any, decay: Decay) -> Any:
    """Return the state with the weights of the elements in v; the new root in the state depends on the old ones."""
    # Of the gradients as they are, which are 0 where the clipped ones are.
    weights = _weights(jax.tree.map(jnp.abs, gradients), before.root_weight, decay)
    return state._replace(root_weight=_after(state.root, weights, before.root_weight))


def _weights(sizes: Any, weights: Any, decay: Decay) -> Any:
    return jax.tree.map(lambda size, w: _if_not_zero(size, ones_average(w, decay), w), sizes, weights)


def _after(first: Any, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda one, a, b: written_in_turn(one, [a], [b])[0], first, new, old)
