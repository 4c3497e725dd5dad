"""Limits from the mean and the deviation of the latest norms."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import Schedulable, check_choice, check_integer, check_number, value_at
from novoclip.clipping import clip
from novoclip.granularity import resolve_measure
from novoclip.limits import Limit, make_limit
from novoclip.measure import Measure
from novoclip.ranges import no_limit
from novoclip.rules.history import HistoryState, check_warmup, empty_history, mean_and_deviation_of, remember

LEARN = ("raw", "clipped")


def deviations_of_history(
    deviations: Schedulable = 3.0,
    *,
    window: int = 128,
    warmup: int | None = None,
    learn: str = "raw",
    eps: Schedulable = 1e-6,
) -> Limit:
    """Limit each block to the mean of its own latest norms plus some deviations.

    c_t = mean + k max(deviation, eps mean), over {n_{t-window}, ..., n_{t-1}}, the deviation
    being that of the population. Norms of 0 are passed over.

    Args:
      deviations: k, at least 0: a float, an array or a schedule.
      window: how many norms are kept a block.
      warmup: how many of them there must be before there is a limit, at most `window`; None for half of it.
      learn: "raw" keeps norms as they came: one spike raises the deviation, and so the limit, for
        a whole window. "clipped" keeps min(n, c), and follows a lasting rise of the norms by and by, if k is
        above 1.5 and eps above 0: from 1 to 10 in 500 steps with k = 3, in 2200 with k = 2.
      eps: the least deviation, as a share of the mean: a float, an array or a schedule.

    Returns:
      A Limit with a `HistoryState`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range.

    Example:
      >>> import jax.numpy as jnp
      >>> limit = deviations_of_history(2.0, window=4, warmup=2)
      >>> state = limit.init(jnp.zeros(()))
      >>> for norm in (1.0, 3.0, 100.0):
      ...     limits, state = limit.update(jnp.array(norm), state, step=jnp.int32(0))
      ...     print(limits)
      inf
      inf
      4.0
    """
    check_number("deviations", deviations)
    check_integer("window", window, low=1)
    least_filled = max(window // 2, 1) if warmup is None else warmup
    check_warmup(least_filled, window)
    check_choice("learn", learn, LEARN)
    check_number("eps", eps)

    def update(
        norms: Any, state: Any, param_norms: Any = None, /, *, step: jax.Array, **extra: Any
    ) -> tuple[Any, HistoryState]:
        del param_norms, extra
        filled, mean, deviation = mean_and_deviation_of(state.history)
        # In a window of equal norms the mean may round below them.
        least = value_at(eps, step, norms, "eps") * jnp.abs(mean)
        limits = mean + value_at(deviations, step, norms, "deviations") * jnp.maximum(deviation, least)
        limits = jnp.where(filled >= least_filled, limits, no_limit(norms.dtype))
        return limits, remember(state, norms if learn == "raw" else jnp.minimum(norms, limits))

    return make_limit(
        lambda norms: empty_history(norms, window), update, name=f"deviations_of_history(window={window})", signed=True
    )


def clip_by_deviation(
    deviations: Schedulable = 3.0,
    *,
    window: int = 128,
    warmup: int | None = None,
    learn: str = "raw",
    eps: Schedulable = 1e-6,
    per: str | Measure = "tree",
    norm: str = "l2",
    shape: str = "hard",
    nonfinite: str = "zero",
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip at the mean of the norms seen lately plus some deviations.

    u_t = g_t min(1, c_t / n_t), with c_t = mean + k deviation over the last `window` norms, n_t
    not included. As published (learn="raw") the first spike is clipped, and raises the deviation so
    much that the next of its size passes: "clipped" does not have that.

    Args:
      deviations: k, at least 0: a float, an array or a schedule.
      window: how many norms are kept a block. Per element, each is one copy of the parameters: at most 64,
        unless `per=elements(max_copies=...)` allows more.
      warmup: how many of them there must be before anything is clipped; None for half of the window.
      learn: "raw" keeps norms before clipping, "clipped" after.
      eps: the least deviation, as a share of the mean: a float, an array or a schedule.
      per: the blocks: "tree", "tensor", "unit", "element" or a Measure.
      norm: "l1", "l2", "max" or "rms".
      shape: "hard", "tanh", "arctan", "algebraic", "smooth", "normalize" or "drop".
      nonfinite: "zero" sets a block whose norm is not finite to zero; "propagate" passes it
        on. Neither enters the history.
      mask: which leaves take part: a pytree of booleans that is a prefix of the parameters, or a function that
        returns one. The others pass unchanged and count for no norm. None for all.

    Returns:
      A GradientTransformation with a `ClipState` whose `limit_state` is a `HistoryState`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown. In `init`: if, per element, the window is
        longer than 64 and was not allowed by `elements(max_copies=...)`.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = clip_by_deviation(warmup=2)
      >>> state = rule.init(jnp.zeros(2))
      >>> for size in (1.0, 1.0, 100.0):
      ...     updates, state = rule.update(size * jnp.array([3.0, 4.0]), state)
      >>> print(state.limits.round(3))
      5.0

    References:
      Hall et al., `Levanter: legible, scalable, reproducible foundation models with JAX
      <https://github.com/marin-community/levanter>`_, 2023 (`clip_update_by_historical_norm`).

    There the least deviation is 1e-6 in the norm's own units. `StandardClip` of the package
    `autoclip` has two sample deviations as its limit, without the mean.
    """
    limit = deviations_of_history(deviations, window=window, warmup=warmup, learn=learn, eps=eps)
    return clip(resolve_measure(per, norm), limit, shape, nonfinite=nonfinite, mask=mask)
