"""Gradients as a guard sees them, with those that its mask hides."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.leaves import is_measured
from novoclip.masks import hide, mask_tree, restore


class Shown(NamedTuple):
    """Gradients, and which of them a guard looks at.

    Attributes:
      leaves: the gradients, with None in place of those that the mask hides.
      rest: the gradients; in those that the mask hides, numbers that are not finite are 0.
    """

    leaves: optax.Updates
    rest: optax.Updates

    def complete(self, leaves: optax.Updates) -> optax.Updates:
        """Return these leaves in place of the ones that are shown, beside those that are hidden."""
        return leaves if self.rest is self.leaves else restore(leaves, self.rest)


def show(updates: optax.Updates, mask: Any) -> Shown:
    """Return the gradients under a mask: a pytree of booleans, a function that returns one, or None for all."""
    if mask is None:
        return Shown(updates, updates)
    chosen = mask_tree(mask, updates)

    def mended(part: Any) -> Any:
        return jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, jnp.zeros_like(x)) if is_measured(x) else x, part)

    rest = jax.tree.map(lambda on, part: part if on else mended(part), chosen, updates)
    return Shown(hide(updates, chosen), rest)
