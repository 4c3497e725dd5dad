"""What an Algorithm is given for a step, and weight decay."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from novoclip.arguments import check_number, value_at
from novoclip.masks import mask_tree
from novoclip.typing import ScalarOrSchedule

# An eps that stays above 0 when multiplied by the root of a weight, which is at least 1 - b2: 1e-16 in float64.
LEAST = 1e-20
MASK = "the mask of weight_decay"  # weight_decay_mask=, or mask= where that is Optax's name


class Epsilon(NamedTuple):
    """What is added to a root. With `above_zero` it is never 0, and division by 0 need not be checked."""

    value: jax.Array
    above_zero: bool


class Step(NamedTuple):
    """What an Algorithm is given for a step.

    Attributes:
      number: int32, how many steps came before this one, not counting skipped steps.
      dtype: float32 or float64, the dtype of all real arrays in this step.
      params: the parameters as they were given, from which masks are made; may be None.
      weights: the parameters in this dtype, with None in place of leaves that are not numeric.
      learning_rate: the learning rate of this step; 1 in a transform that has none.
    """

    number: jax.Array
    dtype: Any
    params: Any
    weights: Any
    learning_rate: jax.Array

    def value(self, value: ScalarOrSchedule, name: str) -> jax.Array:
        """Return a number, or a schedule's value, as a scalar."""
        return value_at(value, self.number, jnp.zeros((), self.dtype), name)

    def unless_zero(self, value: ScalarOrSchedule, name: str) -> jax.Array | None:
        """Return what `value` returns, or None for a Python number that is 0."""
        return None if isinstance(value, float | int) and value == 0 else self.value(value, name)

    def epsilon(self, value: ScalarOrSchedule, name: str) -> Epsilon:
        """Return a number, or a schedule's value, as an Epsilon."""
        return Epsilon(self.value(value, name), isinstance(value, float | int) and value >= LEAST)

    def epsilons(self, value: ScalarOrSchedule, *, inside: bool) -> tuple[Epsilon, jax.Array | None]:
        """Return what is added to a root, and what is added inside it: one is eps, the other adds nothing."""
        small = self.epsilon(value, "eps")
        if not inside:
            return small, None
        return small._replace(value=jnp.zeros((), self.dtype)), self.unless_zero(value, "eps")

    def decay(self, value: ScalarOrSchedule, name: str) -> tuple[jax.Array, jax.Array]:
        """Return (decay, 1 - decay). For a Python number the difference is taken before decay is rounded.

        A decay that is NaN, as a schedule's value may be, counts as 1: nothing is learned.
        """
        decay = self.value(value, name)
        if isinstance(value, float | int):
            return decay, self.value(1.0 - value, name)
        decay = jnp.where(jnp.isnan(decay), 1, decay)
        return decay, 1 - decay


def check_decay(weight_decay: Any, mask: Any) -> None:
    """Raise if a weight decay is not a number, or if there is a mask but no weight decay."""
    if weight_decay is not None:
        check_number("weight_decay", weight_decay)
    elif mask is not None:
        msg = f"{MASK} has no effect without weight_decay: write weight_decay=1e-4, for example, as in optax.adamw"
        raise ValueError(msg)


def add_decay(tree: Any, step: Step, *, rate: ScalarOrSchedule | None, mask: Any, scaled: bool = False) -> Any:
    """Return tree + rate * weights where the mask is True; if `scaled`, tree + rate * learning_rate * weights."""
    # With a static 0 there is no decay, as in Optax: the parameters are not needed.
    if rate is None or (isinstance(rate, float | int) and rate == 0):
        return tree
    if step.params is None:
        msg = "weight_decay needs the parameters: call update(updates, state, params)"
        raise ValueError(msg)
    weights = step.weights
    if mask is not None:
        chosen = mask_tree(mask, step.params, MASK)
        blank = functools.partial(jax.tree.map, jnp.zeros_like)
        weights = jax.tree.map(lambda on, part: part if on else blank(part), chosen, weights)
    by = step.value(rate, "weight_decay")
    by = by * step.learning_rate if scaled else by
    return jax.tree.map(lambda x, w: x + by.astype(w.dtype) * w, tree, weights)
