"""A step that is taken or left out."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import optax

from novoclip.leaves import is_measured, with_numbers
from novoclip.mesh import placed_like, zeros_like


def when(
    condition: jax.Array,
    run: Callable[[], tuple[Any, Any]],
    updates: optax.Updates,
    state: Any,
    otherwise: Callable[[], jax.Array] = lambda: jnp.zeros((0,), bool),
) -> tuple[optax.Updates, Any, jax.Array]:
    """Return run() where the condition holds; else zero updates, and the state as it was.

    The third result is otherwise() where the condition does not hold, and zeros of its shape where it does.
    """

    def numbers() -> tuple[list[jax.Array], Any]:
        sent, new = run()
        # Some optimizers let a state take the gradients' dtype.
        new = jax.tree.map(lambda a, b: a.astype(b.dtype) if hasattr(b, "dtype") else a, new, state)
        return [leaf for leaf in jax.tree.leaves(sent) if is_measured(leaf)], new

    def taken() -> tuple[list[jax.Array], Any, jax.Array]:
        return *numbers(), zeros_like(jax.eval_shape(otherwise))

    def skipped() -> tuple[list[jax.Array], Any, jax.Array]:
        sent, new = jax.eval_shape(numbers)
        return [zeros_like(leaf) for leaf in sent], jax.tree.map(placed_like, state, new), otherwise()

    # A branch, and not a select of results: what is not finite is never computed with.
    sent, new, found = lax.cond(condition, taken, skipped)
    return with_numbers(updates, sent), new, found
