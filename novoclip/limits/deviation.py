"""The limit of `clip_by_deviation`: the mean of the recent norms plus a number of standard deviations."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from novoclip.arguments import check_choice, check_integer, check_number, value_at
from novoclip.limit import Limit, make_limit
from novoclip.limits.history import HistoryState, check_warmup, empty_history, mean_and_deviation_of, remember
from novoclip.ranges import no_limit
from novoclip.typing import ScalarOrSchedule

LEARN = ("raw", "clipped")


def deviation(
    deviations: ScalarOrSchedule = 3.0,
    *,
    window: int = 128,
    warmup: int | None = None,
    learn: Literal["clipped", "raw"] = "clipped",
    eps: ScalarOrSchedule = 1e-6,
) -> Limit:
    """Limit each block to the mean of its recent norms plus a number of standard deviations.

    c_t = mean + k max(s, eps |mean|), where mean and s are the mean and the population standard deviation of
    {n_{t-window}, ..., n_{t-1}}. Norms of 0 are ignored.

    Args:
      deviations: k, the number of standard deviations, at least 0: a float, an array or a schedule.
      window: number of recent norms to keep per block, at least 1.
      warmup: number of norms to see before there is a limit, in [1, window]; None for half of the window.
      learn: which norms are kept. "raw" keeps norms before clipping: one spike raises the standard deviation, and with
        it the limit, for a whole window. "clipped" keeps min(n, c). The limit then follows a lasting increase of the
        norms gradually, if k is above 1.5 and eps above 0: from 1 to 10 in 500 steps with k = 3, in 2200 with k = 2.
      eps: lower bound of the standard deviation, as a fraction of the mean, at least 0: a float, an array or a
        schedule.

    Returns:
      A Limit with a `HistoryState`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of its range, or `learn` is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> limit = deviation(2.0, window=4, warmup=2)
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
        # In a window of equal norms, rounding may put the mean below them.
        least = value_at(eps, step, norms, "eps") * jnp.abs(mean)
        limits = mean + value_at(deviations, step, norms, "deviations") * jnp.maximum(deviation, least)
        limits = jnp.where(filled >= least_filled, limits, no_limit(norms.dtype))
        return limits, remember(state, norms if learn == "raw" else jnp.minimum(norms, limits))

    return make_limit(
        lambda norms: empty_history(norms, window), update, name=f"deviation(window={window})", signed=True
    )
