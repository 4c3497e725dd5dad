"""AutoClip: clip gradients at a percentile of their recent norms."""

from __future__ import annotations

import optax

from novoclip import limits
from novoclip.clipping import clip_by_limit
from novoclip.granularity import resolve_measure
from novoclip.typing import Granularity, Mask, Nonfinite, Norm, ScalarOrSchedule, Shape


def autoclip(
    percentile: ScalarOrSchedule,
    *,
    window: int = 1000,
    warmup: int = 1,
    include_current: bool = True,
    learn_zeros: bool = False,
    per: Granularity = "tree",
    norm: Norm = "l2",
    shape: Shape = "hard",
    nonfinite: Nonfinite = "zero",
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip gradients at a percentile of their recent norms (AutoClip).

    u_t = g_t min(1, c_t / n_t), where c_t is the p-th percentile of the last `window` norms before clipping. n_t is one
    of them, so the first step is not clipped. Norms of 0 are ignored, unless `learn_zeros`.

    Args:
      percentile: p in percent, 0 or in (1, 100]: a float, an array or a schedule. 90 clips
        the largest norms only. The published 10 clips nine steps in ten, which is close to normalizing gradients.
      window: number of recent norms to keep per block, at least 1. The authors keep all norms: for that, use the number
        of steps of the run. Per element, each norm takes one copy of the parameters, and more than 64 have to be
        allowed by `per=elements(max_copies=...)`.
      warmup: number of norms to see before anything is clipped, in [1, window].
      include_current: whether n_t is one of the norms that c_t is computed from, as in the authors' code. If False, the
        first step has no limit, and a spike does not raise its own limit.
      learn_zeros: whether norms of 0 are kept too, as in the authors' code. Once they are more than p percent, the
        limit is 0, and the block does not change until they are fewer.
      per: the block, which is the unit that is clipped together: "tree" (the whole pytree), "tensor", "unit" (an output
        unit), "element" or a Measure.
      norm: norm of a block: "l1", "l2" (Euclidean), "max" or "rms". A Measure has its own.
      shape: how a block is clipped: "hard" (to at most its limit), "tanh", "arctan", "algebraic", "smooth" (every
        block, smoothly to below its limit), "normalize" (every block to its limit) or "drop" (to zero beyond its
        limit).
      nonfinite: "zero" sets a block whose norm is not finite to zero; "propagate" passes it on unchanged.
      mask: which leaves the rule applies to: a pytree of booleans that is a prefix of the parameters, or a function
        that takes the parameters or gradients and returns one. The others pass unchanged and do not count in the norm.
        None for all.

    Returns:
      A GradientTransformation with a `ClipState` whose `limit_state` is a `HistoryState`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `percentile` is outside [0, 100] or a fraction such as 0.9, `window` is below 1, `warmup` is not in
        [1, window], or a string is not one of those listed. In `init`: if, per element, `window` is more than 64 and
        `elements(max_copies=...)` does not allow it.

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

    The authors' code is `autoclip(10.0, learn_zeros=True)` with a window as long as the run. The package `autoclip` is
    `autoclip(90.0, per="tensor", include_current=False)`.
    """
    limit = limits.autoclip(
        percentile, window=window, warmup=warmup, include_current=include_current, learn_zeros=learn_zeros
    )
    return clip_by_limit(resolve_measure(per, norm), limit, shape, nonfinite=nonfinite, mask=mask)
