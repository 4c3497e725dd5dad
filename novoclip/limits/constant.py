"""A limit that is a fixed threshold or a schedule."""

from __future__ import annotations

from typing import Any

import jax

from novoclip.arguments import check_number, value_at
from novoclip.limit import Limit, make_limit
from novoclip.typing import ScalarOrSchedule


def constant(value: ScalarOrSchedule, *, name: str = "value") -> Limit:
    """Limit each block to a fixed threshold, or to the value of a schedule at each step.

    Args:
      value: the threshold, at least 0, in the gradients' units: a float, an array, or a schedule `step -> value`. An
        array is a scalar, or a vector with one entry per block; units and elements take scalars only. A schedule counts
        every update of the rule, from 0.
      name: the name of `value` in error messages.

    Returns:
      A Limit without state.

    Raises:
      TypeError: if `value` is not a real number, an array or a function.
      ValueError: if it is negative or NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> limits, _ = constant(0.5).update(jnp.array([1.0, 2.0]), (), step=jnp.int32(0))
      >>> print(limits)
      [0.5 0.5]
    """
    check_number(name, value)

    def update(norms: Any, state: Any, param_norms: Any = None, /, *, step: jax.Array, **extra: Any) -> tuple[Any, Any]:
        del param_norms, extra
        return value_at(value, step, norms, name), state

    return make_limit(lambda _: (), update, name="constant", signed=True)
