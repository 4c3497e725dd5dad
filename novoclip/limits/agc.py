"""The limit of adaptive gradient clipping (AGC): a fraction of the norm of the parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from novoclip.arguments import check_number, value_at
from novoclip.limit import Limit, make_limit
from novoclip.typing import ScalarOrSchedule


def agc(clipping: ScalarOrSchedule, *, eps: ScalarOrSchedule = 1e-3) -> Limit:
    """Limit each block to a fraction of the norm of its parameters (AGC): c = clipping max(||w||, eps).

    Args:
      clipping: the fraction, at least 0: a float, an array or a schedule.
      eps: lower bound of the parameter norm, at least 0, in the parameters' units: a float, an array or a schedule.
        Without it, parameters of zero would never change.

    Returns:
      A Limit without state. It needs the norms of the parameters.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is negative or NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> limit = agc(0.5)
      >>> limits, _ = limit.update(jnp.ones(2), (), jnp.array([4.0, 0.0]), step=jnp.int32(0))
      >>> print(limits)
      [2.e+00 5.e-04]
    """
    check_number("clipping", clipping)
    check_number("eps", eps)

    def update(norms: Any, state: Any, param_norms: Any = None, /, *, step: jax.Array, **extra: Any) -> tuple[Any, Any]:
        del extra
        sizes = jnp.maximum(param_norms.astype(norms.dtype), value_at(eps, step, norms, "eps"))
        return value_at(clipping, step, norms, "clipping") * sizes, state

    return make_limit(lambda _: (), update, needs_params=True, name="agc")
