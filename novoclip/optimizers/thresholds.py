"""Clipping of elements at limits from an optimizer's own second moment v, of which it keeps the root."""

from typing import Any

import jax
import jax.numpy as jnp

from novoclip.measure import ELEMENTS, Measure
from novoclip.optimizers.moments import Decay, block_sizes, ones_average, root_average
from novoclip.platforms import written_out
from novoclip.ranges import no_limit
from novoclip.safe_math import wide_ratio
from novoclip.shapes import hard


def clipped_at(gradients: Any, limits: Any) -> Any:
    """Return the gradients with each modulus clipped at its limit."""
    sizes = jax.tree.map(jnp.abs, gradients)
    return ELEMENTS.rescale(gradients, sizes, jax.tree.map(hard, sizes, limits))


def inverse(gradients: Any, root: Any, blocks: Measure, c: jax.Array) -> Any:
    """Return the gradients clipped at c / sqrt(v), where v was updated with them before."""

    def limit(r: jax.Array) -> jax.Array:
        return jnp.where(r > 0, wide_ratio(c, jnp.where(r > 0, r, 1)), no_limit(r.dtype))

    return clipped_at(gradients, blocks.spread(jax.tree.map(limit, root), gradients))


def proportional(gradients: Any, state: Any, blocks: Measure, decay: Decay, k: jax.Array) -> tuple[Any, Any, Any]:
    """Return the gradients clipped at k sqrt(v / weight), and sqrt(v) and the weights, updated with the result."""

    def limit(r: jax.Array, w: jax.Array, count: jax.Array) -> jax.Array:
        # v is a sum over a block's elements: each is compared with their root mean square.
        return jnp.where(w > 0, k * (r / jnp.sqrt(jnp.where(w > 0, w, 1) * count)), no_limit(r.dtype))

    def learn(new: jax.Array, old: jax.Array, size: jax.Array) -> jax.Array:
        # Zeros are skipped. Otherwise the limit of an element that is rarely nonzero would stay near 0.
        return jnp.where(size > 0, new, old)

    root, weight = state.root, state.root_weight
    limits = jax.tree.map(limit, root, weight, blocks.counts(gradients))
    # The new moments, which depend on the result, overwrite the old ones that it is computed from.
    clipped = written_out(clipped_at(gradients, blocks.spread(limits, gradients)))
    sizes = block_sizes(blocks, clipped)
    weights = jax.tree.map(lambda w: ones_average(w, decay), weight)
    return (
        clipped,
        jax.tree.map(learn, root_average(sizes, root, decay), root, sizes),
        jax.tree.map(learn, weights, weight, sizes),
    )
