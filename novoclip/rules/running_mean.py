"""Clip gradients at a multiple of the running mean of their norms."""

from __future__ import annotations

import optax

from novoclip import limits
from novoclip.clipping import clip_by_limit
from novoclip.granularity import resolve_measure
from novoclip.typing import Granularity, Mask, Nonfinite, Norm, ScalarOrSchedule, Shape


def clip_by_running_mean(
    factor: ScalarOrSchedule = 2.0,
    *,
    decay: ScalarOrSchedule = 0.9,
    per: Granularity = "tree",
    norm: Norm = "l2",
    shape: Shape = "hard",
    nonfinite: Nonfinite = "zero",
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip gradients at a multiple of the running mean of their norms.

    u_t = g_t min(1, c_t / n_t), with the limit c_t = factor m_{t-1} of `limits.running_mean`, where m is the running
    mean of the clipped norms. The first norm is not clipped. Norms of 0 are ignored.

    Args:
      factor: multiple of the mean, at least 1: a float, an array or a schedule.
      decay: decay rate of the mean, in [0, 1]: a float, an array or a schedule.
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
      A GradientTransformation with a `ClipState` whose `limit_state` is a `RunningMeanState`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of its range, or a string is not one of those listed.

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
      <https://arxiv.org/abs/2502.11034>`_, 2025, for running means of clipped norms.

    `adagc` has the same limit after its warm-up, with a factor of 1.05 per tensor.
    """
    return clip_by_limit(
        resolve_measure(per, norm), limits.running_mean(factor, decay=decay), shape, nonfinite=nonfinite, mask=mask
    )
