"""Limits that are percentiles of the norms seen lately."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import Schedulable, check_flag, check_integer, check_percentile, value_at
from novoclip.clipping import clip
from novoclip.granularity import resolve_measure
from novoclip.limits import Limit, make_limit
from novoclip.measure import Measure
from novoclip.ranges import no_limit
from novoclip.rules.history import HistoryState, check_warmup, empty_history, percentile_of, remember


def percentile_of_history(
    percentile: Schedulable = 10.0, *, window: int = 1000, warmup: int = 1, include_current: bool = True
) -> Limit:
    """Limit each block to a percentile of its own latest norms.

    c_t = percentile({n_{t-window+1}, ..., n_t}, p), with linear interpolation. It learns
    from norms before clipping, so that the limit cannot shrink by itself. Norms of 0 are
    passed over; until there is another, the limit is infinite.

    Args:
      percentile: p in percent, 0 or in (1, 100]: a float, an array or a schedule.
      window: how many norms are kept a block.
      warmup: how many of them there must be before there is a limit, at most `window`.
      include_current: whether n_t is among those that its own limit is found from.

    Returns:
      A Limit with a `HistoryState`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `percentile` is outside [0, 100] or a fraction such as 0.9, `window` is below 1, or `warmup` not
        in [1, window].

    Example:
      >>> import jax.numpy as jnp
      >>> limit = percentile_of_history(50.0, window=3)
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
    check_warmup(warmup, window)

    def update(
        norms: Any, state: Any, param_norms: Any = None, /, *, step: jax.Array, **extra: Any
    ) -> tuple[Any, HistoryState]:
        del param_norms, extra
        learned = remember(state, norms)
        seen = learned if include_current else state
        filled, limits = percentile_of(seen.history, value_at(percentile, step, norms, "percentile"))
        return jnp.where(filled >= warmup, limits, no_limit(norms.dtype)), learned

    return make_limit(
        lambda norms: empty_history(norms, window), update, name=f"percentile_of_history(window={window})", signed=True
    )


def autoclip(
    percentile: Schedulable = 10.0,
    *,
    window: int = 1000,
    warmup: int = 1,
    include_current: bool = True,
    per: str | Measure = "tree",
    norm: str = "l2",
    shape: str = "hard",
    nonfinite: str = "zero",
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip at a percentile of the norms seen so far (AutoClip).

    u_t = g_t min(1, c_t / n_t), where c_t is the p-th percentile of the last `window`
    norms before clipping that were not 0, n_t included: the first step passes as it is.

    Args:
      percentile: p in percent, 0 or in (1, 100]: a float, an array or a schedule. The authors' 10 clips nine
        steps in ten, which makes it nearly a normalized gradient; 90 clips outliers only.
      window: how many norms are kept a block. The authors keep all: a window as long as the run. Per element, each
        is one copy of the parameters: at most 64, unless `per=elements(max_copies=...)` allows more.
      warmup: how many of them there must be before anything is clipped.
      include_current: whether n_t is among the norms that c_t is found from, as in the authors' code.
        Without it the first step has no limit, and a spike has no part in its own.
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
      ValueError: if `percentile` is outside [0, 100] or a fraction such as 0.9, `window` is below 1, `warmup` not
        in [1, window], or a name is unknown. In `init`: if, per element, the window is longer than 64 and was not
        allowed by `elements(max_copies=...)`.

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
    package of the same name is `autoclip(90.0, per="tensor", include_current=False)`.
    """
    limit = percentile_of_history(percentile, window=window, warmup=warmup, include_current=include_current)
    return clip(resolve_measure(per, norm), limit, shape, nonfinite=nonfinite, mask=mask)
