"""Normalize gradients to a fixed norm."""

from __future__ import annotations

import optax

from novoclip import limits
from novoclip.clipping import clip_by_limit
from novoclip.granularity import resolve_measure
from novoclip.typing import Granularity, Mask, Nonfinite, Norm, ScalarOrSchedule


def normalize_by_norm(
    scale: ScalarOrSchedule = 1.0,
    *,
    per: Granularity = "tree",
    norm: Norm = "l2",
    nonfinite: Nonfinite = "zero",
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Normalize gradients: scale each block, up or down, to a norm of `scale`.

    u = c g / ||g||, and 0 where g = 0. Steps do not become smaller near a minimum: the learning rate has to decay.

    Args:
      scale: c, at least 0, in the units of the updates: a float, an array (a scalar, or a vector with one entry per
        block) or a schedule.
      per: the block, which is the unit that is scaled together: "tree" (the whole pytree), "tensor", "unit" (an output
        unit), "element" (which gives the sign of each element) or a Measure.
      norm: norm of a block: "l1", "l2" (Euclidean), "max" or "rms". A Measure has its own.
      nonfinite: "zero" sets a block whose norm is not finite to zero; "propagate" passes it on unchanged.
      mask: which leaves the rule applies to: a pytree of booleans that is a prefix of the parameters, or a function
        that takes the parameters or gradients and returns one. The others pass unchanged and do not count in the norm.
        None for all.

    Returns:
      A GradientTransformation with a `ClipState`; updates keep the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `scale` is negative or NaN, or a string is not one of those listed.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = normalize_by_norm(5.0)
      >>> gradient = jnp.array([3e-20, -4e-20])
      >>> print(rule.update(gradient, rule.init(gradient))[0])
      [ 3. -4.]

    References:
      Hazan, Levy, Shalev-Shwartz, `Beyond convexity: stochastic quasi-convex optimization
      <https://arxiv.org/abs/1507.02030>`_, 2015.

    `optax.normalize_by_update_norm` adds 1e-6 to the norm. Here nothing is added to it.
    """
    return clip_by_limit(
        resolve_measure(per, norm),
        limits.constant(scale, name="scale")._replace(name="normalize_by_norm"),
        "normalize",
        nonfinite=nonfinite,
        mask=mask,
    )
