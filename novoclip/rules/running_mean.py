"""Limits relative to a running mean of the norms."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import Schedulable, check_integer, check_number, rate_at, value_at
from novoclip.clipping import clip
from novoclip.granularity import resolve_measure
from novoclip.limits import Limit, make_limit, select_blocks
from novoclip.measure import Measure
from novoclip.ranges import no_limit


class RunningMeanState(NamedTuple):
    """What `running_mean` remembers.

    Attributes:
      mean: `(*blocks)`, the mean of what was let through.
      seen: int32 `(*blocks)`, norms other than 0 that it learned from.
    """

    mean: jax.Array
    seen: jax.Array


def running_mean(factor: Schedulable = 2.0, *, decay: Schedulable = 0.98, warmup: int = 1) -> Limit:
    """Limit each block to a multiple of the running mean of its norms.

    c_t = factor m_{t-1};  m_t = m_{t-1} + r (min(n_t, c_t) - m_{t-1}), with r = max(1 - decay, 1 / t),
    a plain mean at first; the first `warmup` norms have no limit. Norms of 0 are passed over: t counts the
    others. After a lasting rise of the norms the limit grows by 1 + (1 - decay)(factor - 1) a step.

    Args:
      factor: at least 1: a float, an array or a schedule.
      decay: in [0, 1]: a float, an array or a schedule.
      warmup: norms to see before the first limit, at least 1. They are learned as if they had been limited.

    Returns:
      A Limit with a `RunningMeanState`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range.

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
    # Below 1 the limit would fall at every step, towards 0.
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


def clip_by_running_mean(
    factor: Schedulable = 2.0,
    *,
    decay: Schedulable = 0.98,
    per: str | Measure = "tree",
    norm: str = "l2",
    shape: str = "hard",
    nonfinite: str = "zero",
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip at a multiple of the running mean of the norms.

    u_t = g_t min(1, c_t / n_t), with the limit c_t = factor m_{t-1} of `running_mean`.

    Args:
      factor: at least 1: a float, an array or a schedule.
      decay: of the mean, in [0, 1]: a float, an array or a schedule.
      per: the blocks: "tree", "tensor", "unit", "element" or a Measure.
      norm: "l1", "l2", "max" or "rms".
      shape: "hard", "tanh", "arctan", "algebraic", "smooth", "normalize" or "drop".
      nonfinite: "zero" sets a block whose norm is not finite to zero; "propagate" passes it
        on. Neither enters the mean.
      mask: which leaves take part: a pytree of booleans that is a prefix of the parameters, or a function that
        returns one. The others pass unchanged and count for no norm. None for all.

    Returns:
      A GradientTransformation with a `ClipState` whose `limit_state` is a `RunningMeanState`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = clip_by_running_mean(2.0)
      >>> state = rule.init(jnp.zeros(2))
      >>> for size in (1.0, 1.0, 100.0):
      ...     updates, state = rule.update(size * jnp.array([3.0, 4.0]), state)
      >>> print(updates, state.limits)
      [6. 8.] 10.0

    References:
      Wang et al., `AdaGC: Improving training stability for large language model pretraining
      <https://arxiv.org/abs/2502.11034>`_, 2025, for means of what was let through.

    `adagc` is this with a factor of 1.05 per tensor, and another beginning.
    """
    return clip(resolve_measure(per, norm), running_mean(factor, decay=decay), shape, nonfinite=nonfinite, mask=mask)
