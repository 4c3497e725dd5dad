"""Adaptive gradient clipping (AGC): limits relative to the norm of the weights."""

from __future__ import annotations

import optax

from novoclip import limits
from novoclip.by_name import at_thresholds
from novoclip.clipping import clip_by_limit
from novoclip.granularity import resolve_measure
from novoclip.masks import masked
from novoclip.typing import Granularity, Mask, Nonfinite, Norm, ScalarOrSchedule, Shape, Threshold


def agc(
    clipping: Threshold = 0.01,
    *,
    eps: ScalarOrSchedule = 1e-3,
    per: Granularity = "unit",
    norm: Norm = "l2",
    shape: Shape = "hard",
    nonfinite: Nonfinite = "zero",
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip each output unit's gradient at a fraction of its weight norm (adaptive gradient clipping, AGC).

    u = g min(1, clipping max(||w||, eps) / ||g||) for each unit, where w are the weights of the unit.

    The authors do not clip the last linear layer: `agc({"head": None, "*": 0.01})`.

    Args:
      clipping: the fraction, at least 0: a float, an array, a schedule, or a mapping from names to such, as in
        `clip_by_norm`. The default of 0.01 is the published value
        for batches of 4096; smaller batches need larger values.
      eps: lower bound of the weight norm, at least 0, in the weights' units: a float, an array or a schedule. Without
        it, weights of zero would never change.
      per: the block, which is the unit that is clipped together: "unit" (an output unit: in the first axis for layers
        of Equinox, which are recognized, in the last for all else; `units("torch")` for kernels in the layout of
        torch, `units(axes)` for others), "tensor", as in DreamerV3 (with 0.3), "tree" (the whole pytree), "element"
        or a Measure.
      norm: norm of a block and of its weights: "l1", "l2" (Euclidean), "max" or "rms". A Measure has its own.
      shape: how a block is clipped: "hard" (to at most its limit), "tanh", "arctan", "algebraic", "smooth" (every
        block, smoothly to below its limit), "normalize" (every block to its limit) or "drop" (to zero beyond its
        limit).
      nonfinite: "zero" sets a block whose norm is not finite to zero; "propagate" passes it on unchanged.
      mask: which leaves the rule applies to: a pytree of booleans that is a prefix of the parameters, or a function
        that takes the parameters or gradients and returns one. The others pass unchanged and do not count in the norm.
        None for all.

    Returns:
      A GradientTransformation with a `ClipState`; its `update` needs the parameters.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is negative or NaN, or a string is not one of those listed. In `update`: if the parameters
        are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = agc(0.1)
      >>> params = {"kernel": jnp.array([[3.0, 0.0], [4.0, 1.0]])}
      >>> gradients = {"kernel": jnp.array([[1.0, 0.0], [0.0, 0.05]])}
      >>> print(rule.update(gradients, rule.init(params), params)[0]["kernel"])
      [[0.5  0.  ]
       [0.   0.05]]

    References:
      Brock, De, Smith, Simonyan, `High-performance large-scale image recognition without
      normalization <https://arxiv.org/abs/2102.06171>`_, 2021.

    `optax.adaptive_grad_clip` treats a kernel with three axes as that of an attention layer, which is wrong for 1-D
    convolutions. Its lower bound of 1e-6 for the gradient norm is not needed here.
    """
    measure = resolve_measure(per, norm)

    def at(threshold: ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
        return clip_by_limit(measure, limits.agc(threshold, eps=eps), shape, nonfinite=nonfinite)

    return masked(at_thresholds("clipping", clipping, at, measure.label_of), mask)
