"""ZClip: clip gradients whose norm exceeds its running mean by many standard deviations."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
import optax

from novoclip import limits
from novoclip.clipping import clip_by_limit
from novoclip.granularity import resolve_measure
from novoclip.typing import Granularity, Mask, Nonfinite, Norm, ScalarOrSchedule, Shape


def zclip(
    z_threshold: ScalarOrSchedule = 2.5,
    *,
    decay: ScalarOrSchedule = 0.97,
    warmup: int = 25,
    max_norm: ScalarOrSchedule = jnp.inf,
    mode: Literal["adaptive_scaling", "mean", "percentile"] = "adaptive_scaling",
    clip_factor: ScalarOrSchedule = 1.0,
    skip_update_on_spike: bool = False,
    release: int | None = None,
    eps: ScalarOrSchedule = 1e-6,
    per: Granularity = "tree",
    norm: Norm = "l2",
    shape: Shape = "hard",
    nonfinite: Nonfinite = "zero",
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip gradients whose norm exceeds its running mean by many standard deviations (ZClip).

    u = g min(1, c / n). With z = (n - mean) / (sqrt(variance) + eps), a norm with z > z_threshold is a spike, and has
    the limit c = clip_factor (mean + z_threshold^2 sqrt(variance) / z). `limits.zclip` has the formulas of the mean,
    the variance and the other two modes.

    If the norms increase permanently by more than half, "adaptive_scaling" and "mean" as published treat every later
    step as a spike, and keep to the old level. To avoid that, give a `release`, such as 20, or use "percentile", which
    follows.

    Args:
      z_threshold: number of standard deviations beyond which a norm is a spike, above 0: a float, an array or a
        schedule.
      decay: decay rate of the running mean and variance, in [0, 1], the authors' alpha: a float, an array or a
        schedule.
      warmup: number of norms to see before the first z-score, at least 1. They give the initial mean and variance.
      max_norm: upper bound of the limit, at least 0, in the gradients' units: a float, an array or a schedule;
        `jnp.inf` for none. The
        published value is 1.0, which clips every step of a run whose norms are larger.
      mode: "adaptive_scaling" (the larger the spike, the lower the limit), "mean" or "percentile" (the mean plus
        z_threshold standard deviations).
      clip_factor: factor of the limit in "adaptive_scaling", in (0, 1]: a float, an array or a schedule.
      skip_update_on_spike: whether spikes leave the mean and the variance unchanged. They are clipped in any case.
      release: number of spikes in a row, at least 1, after which further spikes count as a new level, which is learned;
        None for never, as published.
      eps: added to the standard deviation, at least 0, in the gradients' units: a float, an array or a schedule. The
        published 1e-6 is not negligible for norms of 1e-5.
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
      A GradientTransformation with a `ClipState` whose `limit_state` is a `ZClipState`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of its range, or a string is not one of those listed.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = zclip(warmup=2, max_norm=jnp.inf, mode="mean")
      >>> state = rule.init(jnp.zeros(2))
      >>> for size in (1.0, 1.0, 100.0):
      ...     updates, state = rule.update(size * jnp.array([3.0, 4.0]), state)
      >>> print(updates, state.clipped)
      [3. 4.] 1

    References:
      Kumar et al., `ZClip: Adaptive spike mitigation for LLM pre-training
      <https://arxiv.org/abs/2504.02507>`_, 2025.

    The authors' code divides by n + 1e-6 when it scales gradients, learns from norms of 0, and has no limits per
    tensor.
    """
    limit = limits.zclip(
        z_threshold,
        decay=decay,
        warmup=warmup,
        max_norm=max_norm,
        mode=mode,
        clip_factor=clip_factor,
        skip_update_on_spike=skip_update_on_spike,
        release=release,
        eps=eps,
    )
    return clip_by_limit(resolve_measure(per, norm), limit, shape, nonfinite=nonfinite, mask=mask)
