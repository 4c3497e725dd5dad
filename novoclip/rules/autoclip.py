"""Limits that are percentiles of the norms seen lately."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import Schedulable, check_integer, check_number, value_at
from novoclip.clipping import clip
from novoclip.limits import Limit, choose
from novoclip.measure import Measure, resolve_measure


class PercentileMemory(NamedTuple):
    """What `percentile_of_history` remembers.

    Attributes:
      history: `(window, *blocks)`, the latest norms before clipping; infinite where not yet filled.
      slot: int32 `(*blocks)`, where the next norm goes.
    """

    history: jax.Array
    slot: jax.Array


def percentile_of_history(percentile: Schedulable = 10.0, *, window: int = 1000) -> Limit:
    """Limit each block to a percentile of its own latest norms, the present one included.

    c_t = percentile({n_{t-window+1}, ..., n_t}, p), with linear interpolation. It learns
    from norms before clipping, so that the limit cannot shrink by itself. Norms of 0 are
    passed over; until there is another, the limit is infinite.

    Args:
      percentile: p in [0, 100]: a float, an array or a schedule.
      window: how many norms are kept a block.

    Returns:
      A Limit with a `PercentileMemory`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `percentile` is outside [0, 100] or `window` is below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> limit = percentile_of_history(50.0, window=3)
      >>> memory = limit.init(jnp.zeros(()))
      >>> for norm in (1.0, 3.0, 100.0):
      ...     limits, memory = limit.update(jnp.array(norm), memory, step=jnp.int32(0))
      ...     print(limits)
      1.0
      2.0
      3.0
    """
    check_number("percentile", percentile, high=100.0)
    check_integer("window", window, low=1)

    def init(norms: Any) -> PercentileMemory:
        history = jnp.full((window, *norms.shape), jnp.inf, norms.dtype)
        return PercentileMemory(history, jnp.zeros(norms.shape, jnp.int32))

    def update(
        norms: Any, memory: Any, param_norms: Any = None, /, *, step: jax.Array, **extra: Any
    ) -> tuple[Any, PercentileMemory]:
        del param_norms, extra
        slots = jax.lax.broadcasted_iota(jnp.int32, memory.history.shape, 0)
        history = jnp.where(slots == memory.slot[None], norms[None], memory.history)
        memory = choose(norms > 0, PercentileMemory(history, (memory.slot + 1) % window), memory)
        filled = jnp.sum(memory.history < jnp.inf, axis=0).astype(norms.dtype)
        position = value_at(percentile, step, norms, "percentile") / 100 * jnp.maximum(filled - 1, 0)
        below, above = jnp.floor(position), jnp.ceil(position)
        ordered = jnp.sort(memory.history, axis=0)
        low, high = (jnp.take_along_axis(ordered, i.astype(jnp.int32)[None], axis=0)[0] for i in (below, above))
        return jnp.where(filled > 0, low + (position - below) * (high - low), jnp.inf), memory

    return Limit(init, update)


def autoclip(
    percentile: Schedulable = 10.0,
    *,
    window: int = 1000,
    per: str | Measure = "tree",
    norm: str = "l2",
    shape: str = "hard",
    nonfinite: str = "zero",
) -> optax.GradientTransformationExtraArgs:
    """Clip at a percentile of the norms seen so far (AutoClip).

    u_t = g_t min(1, c_t / n_t), where c_t is the p-th percentile of the last `window`
    norms before clipping that were not 0, n_t included: the first step passes as it is.

    Args:
      percentile: p in [0, 100]: a float, an array or a schedule. The authors' 10 clips nine
        steps in ten, which makes it nearly a normalized gradient; 90 clips outliers only.
      window: how many norms are kept a block. The authors keep all: a window as long as the run.
      per: the blocks: "tree", "tensor", "unit", "element" or a Measure.
      norm: "l1", "l2", "max" or "rms".
      shape: "hard", "tanh", "arctan", "algebraic", "normalize" or "drop".
      nonfinite: "zero" sets a block whose norm is not finite to zero; "propagate" passes it
        on. Neither enters the history.

    Returns:
      A GradientTransformation with a `ClipState` whose memory is a `PercentileMemory`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `percentile` is outside [0, 100], `window` is below 1, or a name is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = autoclip(50.0)
      >>> state = rule.init(jnp.zeros(2))
      >>> for size in (1.0, 1.0, 100.0):
      ...     updates, state = rule.update(size * jnp.array([3.0, 4.0]), state)
      >>> print(updates, state.limits)
      [3. 4.] 5.0

    References:
      Seetharaman et al., `AutoClip: Adaptive gradient clipping for source separation
      networks <https://arxiv.org/abs/2007.14469>`_, 2020.

    The authors keep norms of 0 too, after which a block that is rarely used hardly moves. The
    package of the same name differs: thresholds per tensor, a quantile of 0.9, and the present
    norm not included.
    """
    limit = percentile_of_history(percentile, window=window)
    return clip(resolve_measure(per, norm), limit, shape, nonfinite=nonfinite)
