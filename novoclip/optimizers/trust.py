"""Steps in proportion to the norm of the weights, for LARS and LAMB."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from novoclip.masks import mask_tree
from novoclip.measure import Measure
from novoclip.optimizers.step import Step
from novoclip.safe_math import wide_ratio
from novoclip.typing import Mask

RATIO_MASK = "trust_ratio_mask"


def trusted(tree: Any, step: Step, blocks: Measure, coefficient: Any = 1.0, eps: Any = 0.0, mask: Mask = None) -> Any:
    """Return the pytree with each block multiplied by coefficient ||w|| / (||u|| + eps), or 1 where a norm is 0.

    Raises:
      ValueError: if the parameters are absent.
    """
    if step.params is None:
        msg = "the trust ratio needs the parameters: call update(updates, state, params)"
        raise ValueError(msg)

    def ratio(of_weights: jax.Array, norm: jax.Array) -> jax.Array:
        by = step.value(coefficient, "trust_coefficient").astype(norm.dtype)
        small = step.value(eps, "eps").astype(norm.dtype)
        known = (of_weights > 0) & (norm > 0)
        return jnp.where(known, wide_ratio(by * of_weights, jnp.where(known, norm + small, 1)), 1)

    ratios = jax.tree.map(ratio, blocks.norms(step.weights), blocks.norms(tree))
    spread = blocks.spread(ratios, tree)
    scaled = jax.tree.map(lambda u, by: by.astype(u.dtype) * u, tree, spread)
    if mask is None:
        return scaled
    chosen = mask_tree(mask, step.params, RATIO_MASK)
    return jax.tree.map(lambda on, new, old: new if on else old, chosen, scaled, tree)
