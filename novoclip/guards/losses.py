"""The loss that `skip_spikes` judges, and the Limits that it can be judged by."""

import math
import numbers
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from novoclip import limits
from novoclip.limit import Limit
from novoclip.mesh import varying_axes

MARGIN = 0.005  # what a loss may rise by in any case, so that losses near 0 do not count as spikes


def default_value_limit() -> Limit:
    """Return the Limit that losses have by default: mean + 6 max(standard deviation, 0.01 |mean|) + 0.005.

    Mean and standard deviation are those of the latest 128 losses. There is no limit before 8 of them were seen.
    """
    bound = limits.deviation(6.0, warmup=8, eps=0.01)

    def update(
        losses: Any, state: Any, param_norms: Any = None, /, *, step: jax.Array, **extra: Any
    ) -> tuple[Any, Any]:
        limits, state = bound.update(losses, state, param_norms, step=step, **extra)
        return limits + MARGIN, state

    return Limit(bound.init, update, name="the default", signed=True)


def checked_value_limit(value_limit: Any) -> Limit | None:
    """Return the Limit of the loss, the default for None, or None for False.

    Raises:
      TypeError: if `value_limit` is something else.
      ValueError: if the Limit does not work for negative numbers.
    """
    if value_limit is False:
        return None
    limit = default_value_limit() if value_limit is None else _fixed(value_limit)
    if not isinstance(limit, Limit) or limit.needs_params:
        msg = (
            "value_limit must be a number, a Limit that needs no parameters, None for the default, or False to ignore "
            "the loss; "
            f"got {value_limit!r}"
        )
        raise TypeError(msg)
    if not limit.signed:
        msg = (
            "value_limit must be a Limit that works for losses below 0 too, such as limits.constant(50.0), "
            "limits.deviation(6.0, warmup=8) or limits.zclip(6.0, warmup=8); this one is made for norms, which are "
            "never negative. For a Limit of your own that works for them, write Limit(init, update, signed=True)"
        )
        raise ValueError(msg)
    return limit


def _fixed(limit: Any) -> Any:
    """Return a number, which may be negative, as the Limit that it stands for; anything else as it is."""
    if isinstance(limit, numbers.Real) and not isinstance(limit, bool):
        number = float(limit)
        if math.isnan(number):
            msg = "value_limit must not be NaN, which no loss exceeds: write False to ignore the loss"
            raise ValueError(msg)
        return limits.constant(lambda _: number)
    return limit


def scalar_loss(value: Any, dtype: Any) -> jax.Array | None:
    """Return the loss as a scalar of this dtype, or None if there is none.

    Raises:
      TypeError: if it is no real scalar.
      ValueError: if it differs from device to device.
    """
    if value is None:
        return None
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        real = any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer))
    else:
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or jnp.ndim(value):
        kind = f" of dtype {value.dtype} and shape {value.shape}" if hasattr(value, "dtype") else ""
        msg = f"value must be the loss, a real scalar; got {value!r}{kind}"
        raise TypeError(msg)
    if not isinstance(value, jax.Array):
        with np.errstate(over="ignore"):
            return jnp.asarray(np.asarray(value, np.float64).astype(dtype))
    if axes := varying_axes(value):
        msg = (
            f"value must be the same on all devices, but differs along the mesh axes {', '.join(axes)}: "
            f"average it first, by jax.lax.pmean(loss, {axes!r})"
        )
        raise ValueError(msg)
    return value.astype(dtype)


def never_zero(loss: jax.Array) -> jax.Array:
    """Return the loss, as the smallest normal number where it is 0: Limits pass over norms of 0."""
    return jnp.where(loss == 0, jnp.finfo(loss.dtype).tiny, loss)


def loss_of(extra: dict[str, Any]) -> Any:
    """Return the loss among the extra arguments of an update, `value=`; warn of a `loss=` without it."""
    if "loss" in extra and extra.get("value") is None:
        msg = (
            "update was given loss=, which is not looked at: give the loss as value=, or, in a guard, set "
            "value_limit=False if the loss is not to be judged"
        )
        warnings.warn(msg, UserWarning, stacklevel=3)
    return extra.get("value")
