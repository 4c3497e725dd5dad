"""Clip each element of the gradient."""

from __future__ import annotations

import optax

from novoclip import limits
from novoclip.by_name import at_thresholds
from novoclip.clipping import clip_by_limit
from novoclip.granularity import resolve_measure
from novoclip.masks import masked
from novoclip.typing import Mask, Nonfinite, ScalarOrSchedule, Shape, Threshold


def clip_by_value(
    max_delta: Threshold,
    *,
    shape: Shape = "hard",
    nonfinite: Nonfinite = "zero",
    count: bool = False,
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip each element of the gradient to [-max_delta, max_delta].

    u = sign(g) min(|g|, c). Complex elements are clipped by modulus; their phase does not change. The direction of the
    gradient may change. An infinity is clipped like any large element. A complex element whose modulus is not finite
    becomes 0.

    Args:
      max_delta: c, at least 0, in the gradients' units: a float, an array, a schedule, or a mapping from names to such,
        as in `clip_by_norm`.
      shape: how elements are clipped: "hard" (to at most c), "tanh", "arctan", "algebraic", "smooth" (all elements,
        smoothly to below c), "normalize" (sign(g) c) or "drop" (to 0 beyond c).
      nonfinite: "zero" sets NaN to 0; "propagate" passes it on.
      count: whether to keep the statistics `fraction`, `clipped` and `nonfinite` in the state, which takes one more
        pass over the gradients.
      mask: which leaves the rule applies to: a pytree of booleans that is a prefix of the parameters, or a function
        that takes the parameters or gradients and returns one. The others pass unchanged and do not count in the norm.
        None for all.

    Returns:
      A GradientTransformation with a `ClipState`; updates keep the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `max_delta` is negative or NaN, or a string is not one of those listed.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = clip_by_value(1.0)
      >>> gradient = jnp.array([0.5, -3.0, jnp.inf])
      >>> print(rule.update(gradient, rule.init(gradient))[0])
      [ 0.5 -1.   1. ]

    References:
      Pascanu, Mikolov, Bengio, `On the difficulty of training recurrent neural networks
      <https://arxiv.org/abs/1211.5063>`_, 2012, which traces it to Mikolov's thesis.

    `optax.clip` differs in that it keeps NaN, and in how it clips complex elements.
    """

    def at(threshold: ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
        limit = limits.constant(threshold, name="max_delta")
        return clip_by_limit(resolve_measure("element"), limit, shape, nonfinite=nonfinite, count=count)

    return masked(at_thresholds("max_delta", max_delta, at), mask)


clip = clip_by_value  # its name in Optax
