"""The limit of LARS, LARC, LAMB and LUC: proportional to the norm of the parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from novoclip.arguments import check_number, value_at
from novoclip.limit import Limit, make_limit
from novoclip.ranges import no_limit
from novoclip.safe_math import wide_ratio
from novoclip.typing import ScalarOrSchedule


def trust_ratio(
    coefficient: ScalarOrSchedule = 1e-3,
    *,
    learning_rate: ScalarOrSchedule | None = None,
    min_norm: ScalarOrSchedule = 0.0,
    max_norm: ScalarOrSchedule = jnp.inf,
) -> Limit:
    """Limit each block in proportion to the norm of its parameters (LARS, LARC, LAMB, LUC).

    c = coefficient phi(||w||) / learning_rate, with phi(z) = min(max(z, min_norm), max_norm). There is no limit where
    phi(||w||) or the learning rate is 0.

    Args:
      coefficient: the trust coefficient, at least 0: a float, an array or a schedule.
      learning_rate: learning rate that the clipped gradients are multiplied by later, at least 0: a float, an array or
        a schedule. None for 1.
      min_norm: lower bound of the parameter norm, at least 0: a float, an array or a schedule.
      max_norm: upper bound of the parameter norm, at least 0: a float, an array or a schedule. Infinite by default.

    Returns:
      A Limit without state. It needs the norms of the parameters.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is negative or NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> limit = trust_ratio(0.5, learning_rate=0.1)
      >>> limits, _ = limit.update(jnp.ones(2), (), jnp.array([4.0, 0.0]), step=jnp.int32(0))
      >>> print(limits)
      [20. inf]
    """
    for name, number in (("coefficient", coefficient), ("min_norm", min_norm), ("max_norm", max_norm)):
        check_number(name, number)
    if learning_rate is not None:
        check_number("learning_rate", learning_rate)

    def update(norms: Any, state: Any, param_norms: Any = None, /, *, step: jax.Array, **extra: Any) -> tuple[Any, Any]:
        del extra
        low, high = value_at(min_norm, step, norms, "min_norm"), value_at(max_norm, step, norms, "max_norm")
        sizes = jnp.minimum(jnp.maximum(param_norms.astype(norms.dtype), low), high)
        rate = 1.0 if learning_rate is None else learning_rate
        by = value_at(rate, step, norms, "learning_rate")
        usable = (sizes > 0) & (by > 0)
        limits = wide_ratio(value_at(coefficient, step, norms, "coefficient") * sizes, jnp.where(by > 0, by, 1))
        return jnp.where(usable, limits, no_limit(norms.dtype)), state

    return make_limit(lambda _: (), update, needs_params=True, name="trust_ratio")
