"""The limit of AutoClip: a percentile of the recent norms."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from novoclip.arguments import check_flag, check_integer, check_percentile, value_at
from novoclip.limit import Limit, make_limit
from novoclip.limits.history import HistoryState, check_warmup, empty_history, percentile_of, remember
from novoclip.ranges import no_limit
from novoclip.typing import ScalarOrSchedule


def autoclip(
    percentile: ScalarOrSchedule,
    *,
    window: int = 1000,
    warmup: int = 1,
    include_current: bool = True,
    learn_zeros: bool = False,
) -> Limit:
    """Limit each block to a percentile of its recent norms (AutoClip).

    c_t = percentile({n_{t-window+1}, ..., n_t}, p), with linear interpolation. The norms are those before clipping, so
    that the limit cannot shrink by itself. Norms of 0 are ignored, unless `learn_zeros`. Until `warmup` norms are
    known, the limit is infinite.

    Args:
      percentile: p in percent, 0 or in (1, 100]: a float, an array or a schedule. 90 clips
        the largest norms only; the published 10 clips nine steps in ten.
      window: number of recent norms to keep per block, at least 1.
      warmup: number of norms to see before there is a limit, in [1, window].
      include_current: whether n_t is one of the norms that c_t is computed from.
      learn_zeros: whether norms of 0 are kept too, as in the authors' code.

    Returns:
      A Limit with a `HistoryState`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `percentile` is outside [0, 100] or a fraction such as 0.9, `window` is below 1, or `warmup` not
        in [1, window].

    Example:
      >>> import jax.numpy as jnp
      >>> limit = autoclip(50.0, window=3)
      >>> state = limit.init(jnp.zeros(()))
      >>> for norm in (1.0, 3.0, 100.0):
      ...     limits, state = limit.update(jnp.array(norm), state, step=jnp.int32(0))
      ...     print(limits)
      1.0
      2.0
      3.0
    """
    check_percentile("percentile", percentile)
    check_integer("window", window, low=1)
    check_flag("include_current", include_current)
    check_flag("learn_zeros", learn_zeros)
    check_warmup(warmup, window)

    def update(
        norms: Any, state: Any, param_norms: Any = None, /, *, step: jax.Array, **extra: Any
    ) -> tuple[Any, HistoryState]:
        del param_norms, extra
        learned = remember(state, norms, learn_zeros=bool(learn_zeros))
        seen = learned if include_current else state
        filled, limits = percentile_of(seen.history, value_at(percentile, step, norms, "percentile"))
        return jnp.where(filled >= warmup, limits, no_limit(norms.dtype)), learned

    return make_limit(
        lambda norms: empty_history(norms, window), update, name=f"autoclip(window={window})", signed=True
    )
