"""Clip gradients at the mean of their recent norms plus a number of standard deviations."""

from __future__ import annotations

from typing import Literal

import optax

from novoclip import limits
from novoclip.clipping import clip_by_limit
from novoclip.granularity import resolve_measure
from novoclip.typing import Granularity, Mask, Nonfinite, Norm, ScalarOrSchedule, Shape


def clip_by_deviation(
    deviations: ScalarOrSchedule = 3.0,
    *,
    window: int = 128,
    warmup: int | None = None,
    learn: Literal["clipped", "raw"] = "clipped",
    eps: ScalarOrSchedule = 1e-6,
    per: Granularity = "tree",
    norm: Norm = "l2",
    shape: Shape = "hard",
    nonfinite: Nonfinite = "zero",
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip gradients at the mean of their recent norms plus a number of standard deviations.

    u_t = g_t min(1, c_t / n_t), with c_t = mean + k s, where mean and s are the mean and the standard deviation of the
    last `window` norms, without n_t. With learn="raw", as published, the first spike is clipped, and raises the
    standard deviation so much that the next spike of that size passes. With learn="clipped", that does not happen.
    Norms of 0 are ignored.

    Args:
      deviations: k, the number of standard deviations, at least 0: a float, an array or a schedule.
      window: number of recent norms to keep per block, at least 1. Per element, each norm takes one copy of the
        parameters, and more than 64 have to be allowed by `per=elements(max_copies=...)`.
      warmup: number of norms to see before anything is clipped, in [1, window]; None for half of the window.
      learn: "clipped" keeps norms after clipping; "raw", as in levanter, norms before it, so that one spike raises the
        limit for a whole window.
      eps: lower bound of the standard deviation, as a fraction of the mean, at least 0: a float, an array or a
        schedule.
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
      ValueError: if an argument is out of its range, or a string is not one of those listed. In `init`: if, per
        element, `window` is more than 64 and `elements(max_copies=...)` does not allow it.

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

    In Levanter, the lower bound of the standard deviation is 1e-6 in the norms' units. `StandardClip` of the package
    `autoclip` has a limit of two sample standard deviations, without the mean.
    """
    limit = limits.deviation(deviations, window=window, warmup=warmup, learn=learn, eps=eps)
    return clip_by_limit(resolve_measure(per, norm), limit, shape, nonfinite=nonfinite, mask=mask)
