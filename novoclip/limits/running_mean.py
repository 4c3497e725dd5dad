"""The limit of `clip_by_running_mean`: a multiple of the running mean of the norms."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from novoclip.arguments import check_integer, check_number, rate_at, value_at
from novoclip.limit import Limit, make_limit, select_blocks
from novoclip.ranges import no_limit
from novoclip.typing import ScalarOrSchedule


class RunningMeanState(NamedTuple):
    """State of `running_mean`.

    Attributes:
      mean: `(*blocks)`, running mean of the clipped norms.
      seen: int32 `(*blocks)`, number of norms other than 0 so far.
    """

    mean: jax.Array
    seen: jax.Array


def running_mean(factor: ScalarOrSchedule = 2.0, *, decay: ScalarOrSchedule = 0.9, warmup: int = 1) -> Limit:
    """Limit each block to a multiple of the running mean of its clipped norms.

    c_t = factor m_{t-1};  m_t = m_{t-1} + r (min(n_t, c_t) - m_{t-1}), with r = max(1 - decay, 1 / t), which is a plain
    mean at first. The first `warmup` norms have no limit. Norms of 0 are ignored: t counts the others. After a lasting
    increase of the norms, the limit grows by a factor of 1 + (1 - decay)(factor - 1) per step.

    Args:
      factor: multiple of the mean, at least 1: a float, an array or a schedule.
      decay: decay rate of the mean, in [0, 1]: a float, an array or a schedule.
      warmup: number of norms to see before the first limit, at least 1. They enter the mean as min(n, c), too.

    Returns:
      A Limit with a `RunningMeanState`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> limit = running_mean(2.0)
      >>> state = limit.init(jnp.zeros(()))
      >>> for norm in (1.0, 3.0, 100.0):
      ...     limits, state = limit.update(jnp.array(norm), state, step=jnp.int32(0))
      ...     print(limits)
      inf
      2.0
      3.0
    """
    # With a factor below 1, the limit would decrease towards 0, step by step.
    check_number("factor", factor, low=1.0)
    check_number("decay", decay, high=1.0)
    check_integer("warmup", warmup, low=1)

    def init(norms: Any) -> RunningMeanState:
        return RunningMeanState(jnp.zeros(norms.shape, norms.dtype), jnp.zeros(norms.shape, jnp.int32))

    def update(
        norms: Any, state: Any, param_norms: Any = None, /, *, step: jax.Array, **extra: Any
    ) -> tuple[Any, RunningMeanState]:
        del param_norms, extra
        none = no_limit(norms.dtype)
        limits = jnp.where(state.seen > 0, value_at(factor, step, norms, "factor") * state.mean, none)
        seen = jnp.minimum(state.seen, jnp.iinfo(jnp.int32).max - 1) + 1
        rate = jnp.maximum(rate_at(decay, step, norms, "decay"), 1 / seen.astype(norms.dtype))
        mean = state.mean + rate * (jnp.minimum(norms, limits) - state.mean)
        after = select_blocks(norms > 0, RunningMeanState(mean, seen), state)
        return jnp.where(state.seen >= warmup, limits, none), after

    return make_limit(init, update, name="running_mean")
