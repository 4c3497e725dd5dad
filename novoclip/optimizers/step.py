"""A step as an Algorithm sees it, and weight decay in it."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from novoclip.arguments import Schedulable, check_number, value_at
from novoclip.masks import mask_tree

# An eps that stays above 0 when it is multiplied with the root of a weight, which is at least 1 - b2: 1e-16 in float64.
LEAST = 1e-20


class Epsilon(NamedTuple):
    """What is added to a root; `above_zero` says that it is never 0, so that nobody needs to look."""

    value: jax.Array
    above_zero: bool


class Step(NamedTuple):
    """A step as an Algorithm sees it.

    Attributes:
      number: int32, how many steps were learned before this one.
      dtype: float32, or float64, the dtype of all the numbers in this step.
      params: the parameters as they were given, which a mask is made from; may be None.
      weights: the same in this precision, with None for leaves without numbers.
    """

    number: jax.Array
    dtype: Any
    params: Any
    weights: Any

    def value(self, value: Schedulable, name: str) -> jax.Array:
        """Return a number, or a schedule's value, as a scalar."""
        return value_at(value, self.number, jnp.zeros((), self.dtype), name)

    def unless_zero(self, value: Schedulable, name: str) -> jax.Array | None:
        """Return the same, or None for a number that is 0 at every step."""
        return None if isinstance(value, float | int) and value == 0 else self.value(value, name)

    def epsilon(self, value: Schedulable, name: str) -> Epsilon:
        """Return a number, or a schedule's value, as what is added to a root."""
        return Epsilon(self.value(value, name), isinstance(value, float | int) and value >= LEAST)

    def decay(self, value: Schedulable, name: str) -> tuple[jax.Array, jax.Array]:
        """Return (decay, 1 - decay), the latter not from the rounded former where it can be had.

        A decay that is NaN, as a schedule may be, counts as 1: nothing is learned.
        """
        decay = self.value(value, name)
        if isinstance(value, float | int):
            return decay, self.value(1.0 - value, name)
        decay = jnp.where(jnp.isnan(decay), 1, decay)
        return decay, 1 - decay


def check_decay(weight_decay: Any, mask: Any) -> None:
    """Raise if a weight decay is no number, or if there is a mask for none."""
    if weight_decay is not None:
        check_number("weight_decay", weight_decay)
    elif mask is not None:
        msg = "weight_decay_mask has no effect without weight_decay: write weight_decay=1e-4, say, as optax.adamw has"
        raise ValueError(msg)


def add_decay(tree: Any, step: Step, *, rate: Schedulable | None, mask: Any) -> Any:
    """Return tree + rate * weights, where the mask allows it."""
    if rate is None:
        return tree
    if step.params is None:
        msg = "weight_decay needs the parameters: call update(updates, state, params)"
        raise ValueError(msg)
    weights = step.weights
    if mask is not None:
        chosen = mask_tree(mask, step.params, "weight_decay_mask")
        blank = functools.partial(jax.tree.map, jnp.zeros_like)
        weights = jax.tree.map(lambda on, part: part if on else blank(part), chosen, weights)
    by = step.value(rate, "weight_decay")
    return jax.tree.map(lambda x, w: x + by.astype(w.dtype) * w, tree, weights)
