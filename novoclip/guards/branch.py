"""A step that is taken or left out."""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import optax

from novoclip.leaves import is_measured, with_numbers
from novoclip.mesh import placed_like, zeros_like


def when(
    condition: jax.Array, run: Callable[[], tuple[Any, Any]], updates: optax.Updates, state: Any
) -> tuple[optax.Updates, Any]:
    """Return run() where the condition holds; else zero updates, and the state as it was."""

    def numbers() -> tuple[list[jax.Array], Any]:
        sent, new = run()
        # Some optimizers let a state take the gradients' dtype.
        new = jax.tree.map(lambda a, b: a.astype(b.dtype) if hasattr(b, "dtype") else a, new, state)
        return [leaf for leaf in jax.tree.leaves(sent) if is_measured(leaf)], new

    def nothing() -> tuple[list[jax.Array], Any]:
        sent, new = jax.eval_shape(numbers)
        return [zeros_like(leaf) for leaf in sent], jax.tree.map(placed_like, state, new)

    # A branch, and not a select of results: what is not finite is never computed with.
    sent, new = lax.cond(condition, numbers, nothing)
    return with_numbers(updates, sent), new
