"""What becomes of arrays in a step that is skipped."""

from typing import Any

import jax
from jax import lax
import jax.numpy as jnp


def negative(direction: Any, by: jax.Array | None) -> Any:
    """Return minus the direction, multiplied by a learning rate if there is one."""
    if by is None:
        return jax.tree.map(lambda u: -u, direction)
    return jax.tree.map(lambda u: -by.astype(u.dtype) * u, direction)


def unless(skipped: jax.Array | None, new: Any, old: Any, chosen: Any = None) -> Any:
    """Return the new arrays, or the old ones if the step is skipped; arrays in `chosen` are returned as they are."""
    if skipped is None:
        return new
    done = {id(leaf) for leaf in jax.tree.leaves(chosen)}

    def either(a: Any, b: Any) -> Any:
        # The state of clip= may take the gradients' dtype, as that of some transforms does.
        return a if id(a) in done else lax.select_n(skipped, jnp.asarray(a, jnp.result_type(b)), jnp.asarray(b))

    return jax.tree.map(either, new, old)


@jax.jit
def zero_if(skipped: jax.Array, leaf: jax.Array) -> jax.Array:
    """Return zeros if the step is skipped. Jitted by itself, so that it is lowered once for leaves of one shape."""
    return lax.select_n(skipped, leaf, lax.full_like(leaf, 0))
