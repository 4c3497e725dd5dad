"""Clipping of each number."""

from typing import Any

import optax

from novoclip.arguments import Schedulable
from novoclip.clipping import clip
from novoclip.granularity import resolve_measure
from novoclip.limits import constant


def clip_by_value(
    max_delta: Schedulable, *, shape: str = "hard", nonfinite: str = "zero", count: bool = False, mask: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Clip each number to [-max_delta, max_delta].

    u = sign(g) min(|g|, c). Complex numbers are clipped by modulus; their phase stays.
    The direction of the gradient changes. An infinity is clipped like any large
    number; a complex number whose modulus is not finite becomes 0.

    Args:
      max_delta: c, at least 0, in the gradients' units: a float, an array or a schedule.
      shape: "hard", "tanh", "arctan", "algebraic", "normalize" (sign(g) c) or "drop".
      nonfinite: "zero" sets NaN to 0; "propagate" passes it on.
      count: whether to keep `fraction`, `clipped` and `nonfinite` in the state, which
        takes one more pass over the gradients.
      mask: which leaves take part: a pytree of booleans that is a prefix of the parameters, or a function that
        returns one. The others pass unchanged and count for no norm. None for all.

    Returns:
      A GradientTransformation with a `ClipState`; updates keep the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `max_delta` is negative or NaN, or a name is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = clip_by_value(1.0)
      >>> gradient = jnp.array([0.5, -3.0, jnp.inf])
      >>> print(rule.update(gradient, rule.init(gradient))[0])
      [ 0.5 -1.   1. ]

    References:
      Pascanu, Mikolov, Bengio, `On the difficulty of training recurrent neural networks
      <https://arxiv.org/abs/1211.5063>`_, 2012, which traces it to Mikolov's thesis.

    Differs from `optax.clip` in NaN (kept there) and in complex numbers.
    """
    limit = constant(max_delta, name="max_delta")
    return clip(resolve_measure("element"), limit, shape, nonfinite=nonfinite, count=count, mask=mask)
