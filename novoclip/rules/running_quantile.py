"""Clip gradients at a running quantile of their norms, without a history of norms."""

from __future__ import annotations

from typing import Literal

import optax

from novoclip import limits
from novoclip.clipping import clip_by_limit
from novoclip.granularity import resolve_measure
from novoclip.typing import Granularity, Mask, Nonfinite, Norm, ScalarOrSchedule, Shape


def clip_by_running_quantile(
    quantile: ScalarOrSchedule,
    *,
    rate: ScalarOrSchedule = 0.2,
    form: Literal["geometric", "arithmetic"] = "geometric",
    initial: ScalarOrSchedule | None = None,
    per: Granularity = "tree",
    norm: Norm = "l2",
    shape: Shape = "hard",
    nonfinite: Nonfinite = "zero",
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip gradients at a running quantile of their norms, with one scalar of state per block.

    u_t = g_t min(1, c_t / n_t), with the limit c_t of `limits.running_quantile`. It is similar to AutoClip, without a
    history of norms.

    Args:
      quantile: the quantile as a fraction, in [0, 1]: a float, an array or a schedule. 0.9 clips one step in
        ten at a steady level; the published 0.5 clips every other step.
      rate: step size of the estimate, above 0: a float, an array or a schedule. The default of 0.2 is the published
        value. In the geometric form, the limit then rises by a factor of at most exp(0.2 quantile) per step.
      form: "geometric", or "arithmetic", whose rate is in the gradients' units.
      initial: the first limit, above 0 and finite, in the gradients' units: a float, an array or a schedule. The
        published value is 0.1. None for the first norm other than 0.
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
      A GradientTransformation with a `ClipState` whose `limit_state` is a `QuantileState`, or in the arithmetic form an
      `ArithmeticQuantileState`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of its range, or a string is not one of those listed.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = clip_by_running_quantile(0.9)
      >>> state = rule.init(jnp.zeros(2))
      >>> for size in (1.0, 1.0, 100.0):
      ...     updates, state = rule.update(size * jnp.array([3.0, 4.0]), state)
      >>> print(state.limits.round(2))
      5.87

    References:
      Andrew, Thakkar, McMahan, Ramaswamy, `Differentially private learning with adaptive
      clipping <https://arxiv.org/abs/1905.03871>`_, 2019.

    The authors count how many examples of a batch are within the limit, and add noise. Here the norm of the one
    gradient of a step is compared, and no noise is added. To clip the gradients of single examples, see `per_example`.
    """
    limit = limits.running_quantile(quantile, rate=rate, form=form, initial=initial)
    return clip_by_limit(resolve_measure(per, norm), limit, shape, nonfinite=nonfinite, mask=mask)
