"""How many copies of the parameters the state of a rule per element takes, before any memory is used."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from novoclip.limits import Limit

UNITS = ("bytes", "kB", "MB", "GB", "TB")


def check_copies(limit: Limit, norms: Any, max_copies: int) -> None:
    """Raise a ValueError if a Limit would keep more than `max_copies` copies of a pytree of norms.

    Counted are arrays with more than one entry per element, such as a history: what has one is no larger than
    an optimizer's moments.
    """
    one: Any = jax.eval_shape(lambda: limit.init(jax.ShapeDtypeStruct((), jnp.float32)))
    arrays = jax.tree.leaves(one)
    copies = sum(array.size for array in arrays if array.size > 1)
    elements = sum(math.prod(norm.shape) for norm in jax.tree.leaves(norms))
    if elements and copies > max_copies:
        size = elements * sum(array.size * array.dtype.itemsize for array in arrays)
        msg = (
            f"per='element' keeps {copies} copies of the parameters here, {_readable(size)} for {elements} elements, "
            f"and at most {max_copies} are allowed: write a smaller window=, or allow them by "
            f"per=novoclip.elements(max_copies={copies})"
        )
        raise ValueError(msg)


def _readable(size: float) -> str:
    power = min(int(math.log(size, 1000)), len(UNITS) - 1)
    return f"{size / 1000**power:.3g} {UNITS[power]}"
