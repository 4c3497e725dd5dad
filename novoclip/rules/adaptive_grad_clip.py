"""Adaptive gradient clipping (AGC) with the arguments and output units of `optax.adaptive_grad_clip`."""

from __future__ import annotations

from typing import Any

import optax

from novoclip.granularity import units
from novoclip.rules.agc import agc
from novoclip.typing import Mask, Nonfinite, Scalar, Threshold


def adaptive_grad_clip(
    clipping: Threshold,
    eps: Scalar = 1e-3,
    axis: int | tuple[int, ...] | None = None,
    *,
    nonfinite: Nonfinite = "zero",
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip each output unit's gradient at a fraction of its weight norm (AGC), with the arguments of Optax.

    u = g min(1, clipping max(||w||, eps) / ||g||) for each unit, where w are the weights of the unit. A unit is a slice
    of a leaf along `axis`, and is clipped as one block. `agc` is the same rule for other layouts, blocks and norms.

    Args:
      clipping: the fraction, at least 0: a float, an array or a schedule.
      eps: lower bound of the weight norm, at least 0, in the weights' units: a float or an array. Without it, weights
        of zero would never change.
      axis: the axes that norms are computed over: an integer or several. None is for Flax kernels: axis 0 of leaves
        with 2 or 3 axes, all axes but the last of leaves with 4 or 5, and all axes of scalars and vectors. Kernels of
        1-D convolutions have 3 axes, for which axis 0 is wrong: give `axis`, or use `agc`.
      nonfinite: "zero" sets a block whose norm is not finite to zero; "propagate" passes it on unchanged.
      mask: which leaves the rule applies to: a pytree of booleans that is a prefix of the parameters, or a function
        that takes the parameters or gradients and returns one. The others pass unchanged and do not count in the norm.
        None for all.

    Returns:
      A GradientTransformation with a `ClipState`; its `update` needs the parameters.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is negative or NaN, a string is not one of those listed, or a leaf has more than 5 axes
        and `axis` is None. In `update`: if the parameters are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = adaptive_grad_clip(0.1)
      >>> params = {"kernel": jnp.array([[3.0, 0.0], [4.0, 1.0]])}
      >>> gradients = {"kernel": jnp.array([[1.0, 0.0], [0.0, 0.05]])}
      >>> print(rule.update(gradients, rule.init(params), params)[0]["kernel"])
      [[0.5  0.  ]
       [0.   0.05]]

    References:
      Brock, De, Smith, Simonyan, `High-performance large-scale image recognition without
      normalization <https://arxiv.org/abs/2102.06171>`_, 2021.

    Parameters, order and defaults are those of `optax.adaptive_grad_clip`. Weights of
    Equinox are (out, in), for which these axes are wrong: use `agc`, which recognizes layers of `equinox.nn`.
    """
    return agc(clipping, eps=eps, per=units(axes_of_optax if axis is None else axis), nonfinite=nonfinite, mask=mask)


def axes_of_optax(path: str, leaf: Any) -> tuple[int, ...]:
    """Return the axes that `optax.adaptive_grad_clip` reduces by default."""
    if sum(size > 1 for size in leaf.shape) <= 1:
        return tuple(range(leaf.ndim))
    if leaf.ndim > 5:
        msg = f"axis must be given for leaves of more than 5 axes; {path!r} has the shape {leaf.shape}"
        raise ValueError(msg)
    return (0,) if leaf.ndim <= 3 else tuple(range(leaf.ndim - 1))
