"""Gradients of fixed norm."""

from typing import Any

import optax

from novoclip.arguments import Schedulable
from novoclip.clipping import clip
from novoclip.granularity import resolve_measure
from novoclip.limits import constant
from novoclip.measure import Measure


def normalize_by_norm(
    scale: Schedulable = 1.0,
    *,
    per: str | Measure = "tree",
    norm: str = "l2",
    nonfinite: str = "zero",
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Scale each block of the gradient, up or down, to a norm of `scale`.

    u = c g / ||g||, and 0 where g = 0. The size of the step no longer says how far the
    minimum is: the learning rate has to decay.

    Args:
      scale: c, at least 0: a float, an array (a scalar, or a vector with an entry a block) or a schedule.
      per: the blocks: "tree", "tensor", "unit", "element" (the sign of each number) or a Measure.
      norm: "l1", "l2", "max" or "rms".
      nonfinite: "zero" sets a block whose norm is not finite to zero; "propagate" passes it on.
      mask: which leaves take part: a pytree of booleans that is a prefix of the parameters, or a function that
        returns one. The others pass unchanged and count for no norm. None for all.

    Returns:
      A GradientTransformation with a `ClipState`; updates keep the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `scale` is negative or NaN, or a name is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = normalize_by_norm(5.0)
      >>> gradient = jnp.array([3e-20, -4e-20])
      >>> print(rule.update(gradient, rule.init(gradient))[0])
      [ 3. -4.]

    References:
      Hazan, Levy, Shalev-Shwartz, `Beyond convexity: stochastic quasi-convex optimization
      <https://arxiv.org/abs/1507.02030>`_, 2015.

    `optax.normalize_by_update_norm` adds 1e-6 to the norm; here there is no such term.
    """
    return clip(
        resolve_measure(per, norm),
        constant(scale, name="scale")._replace(name="normalize_by_norm"),
        "normalize",
        nonfinite=nonfinite,
        mask=mask,
    )
