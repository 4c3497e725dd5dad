"""Clipping of norms at a fixed threshold."""

from typing import Any

import optax

from novoclip.arguments import Schedulable
from novoclip.clipping import clip
from novoclip.granularity import resolve_measure
from novoclip.limits import constant
from novoclip.measure import Measure


def clip_by_norm(
    max_norm: Schedulable,
    *,
    per: str | Measure = "tensor",
    norm: str = "l2",
    shape: str = "hard",
    nonfinite: str = "zero",
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Scale each block of the gradient down to a norm of at most max_norm.

    u = g min(1, c / ||g||) for each block g.

    Args:
      max_norm: c, at least 0, in the gradients' units: a float, an array (a scalar, or a
        vector with an entry a block) or a schedule, which counts every update, from 0.
      per: the blocks: "tree", "tensor", "unit", "element" or a Measure, such as `groups(...)`.
      norm: "l1" (the sum of |g|), "l2", "max" (the largest |g|) or "rms" (the root of the mean of |g|^2).
      shape: "hard", "tanh", "arctan", "algebraic", "smooth", "normalize" or "drop".
      nonfinite: "zero" sets a block whose norm is not finite to zero; "propagate" passes it on.
      mask: which leaves take part: a pytree of booleans that is a prefix of the parameters, or a function that
        returns one. The others pass unchanged and count for no norm. None for all.

    Returns:
      A GradientTransformation with a `ClipState`; updates keep the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `max_norm` is negative or NaN, or a name is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = clip_by_norm(1.0)
      >>> gradients = {"kernel": jnp.array([3.0, 4.0]), "bias": jnp.array([0.5])}
      >>> print(rule.update(gradients, rule.init(gradients))[0])
      {'bias': Array([0.5], dtype=float32), 'kernel': Array([0.6, 0.8], dtype=float32)}

    References:
      Pascanu, Mikolov, Bengio, `On the difficulty of training recurrent neural networks
      <https://arxiv.org/abs/1211.5063>`_, 2012.

    torch's `clip_grad_norm_` divides by ||g|| + 1e-6; here there is no such term.
    """
    limit = constant(max_norm, name="max_norm")
    return clip(resolve_measure(per, norm), limit, shape, nonfinite=nonfinite, mask=mask)


def clip_by_global_norm(
    max_norm: Schedulable, *, shape: str = "hard", nonfinite: str = "zero", mask: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Scale the whole gradient down to a Euclidean norm of at most max_norm.

    u = g min(1, c / ||g||), where ||g|| is taken over all leaves together. The direction stays.

    Args:
      max_norm: c, at least 0, in the gradients' units: a float, an array or a schedule, which counts every
        update, from 0.
      shape: "hard", "tanh", "arctan", "algebraic", "smooth", "normalize" or "drop".
      nonfinite: "zero" gives zero updates if the norm is not finite; "propagate" passes
        the gradient on as it came.
      mask: which leaves take part: a pytree of booleans that is a prefix of the parameters, or a function that
        returns one. The others pass unchanged and count for no norm. None for all.

    Returns:
      A GradientTransformation with a `ClipState`; updates keep the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `max_norm` is negative or NaN, or a name is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = clip_by_global_norm(6.5)
      >>> gradients = {"kernel": jnp.array([3.0, 4.0]), "bias": jnp.array([12.0])}
      >>> updates, state = rule.update(gradients, rule.init(gradients))
      >>> print(updates["kernel"], updates["bias"], state.norms)
      [1.5 2. ] [6.] 13.0

    References:
      Pascanu, Mikolov, Bengio, `On the difficulty of training recurrent neural networks
      <https://arxiv.org/abs/1211.5063>`_, 2012.

    Differs from `optax.clip_by_global_norm`: the norm is taken in float32 whatever the
    gradients' dtype, cannot overflow or underflow where it can be represented, and is kept.
    """
    return clip_by_norm(max_norm, per="tree", shape=shape, nonfinite=nonfinite, mask=mask)
