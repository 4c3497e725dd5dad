"""Clip norms at a fixed threshold."""

from __future__ import annotations

import optax

from novoclip import limits
from novoclip.by_name import at_thresholds
from novoclip.clipping import clip_by_limit
from novoclip.granularity import resolve_fixed, resolve_measure
from novoclip.masks import masked, scaling_only
from novoclip.typing import Granularity, Mask, Nonfinite, Norm, ScalarOrSchedule, Shape, Threshold


def clip_by_norm(
    max_norm: Threshold,
    *,
    per: Granularity = "tensor",
    norm: Norm = "l2",
    shape: Shape = "hard",
    nonfinite: Nonfinite = "zero",
    mask: Mask = None,
    scale_mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip the gradient norm of each tensor, or of other blocks, to at most max_norm.

    u = g min(1, c / ||g||) for each block g. A block is the unit that is clipped together.

    Thresholds by name: `max_norm={"embed": 0.1, "*/bias": 0.2, "*": 1.0}`. A name is the path of a leaf, "a/b/kernel",
    the path of a part of the model, "a/b", a pattern for whole paths as in `fnmatch`, "*/bias", or, with
    `groups(label_of)`, a label. The path of a leaf is matched first, then the longest path of a part, then a pattern,
    then "*". Leaves that no name matches, or
    whose threshold is None, pass unchanged. Each name is a rule of its own, whose state and metrics have its name: with
    per="tree", the norm is that of its leaves together.

    Args:
      max_norm: c, at least 0, in the gradients' units: a float, an array (a scalar, or a vector with one entry per
        block), a schedule, which counts every update, from 0, or a mapping from names to such.
      per: the block: "tensor", "tree" (the whole pytree), "unit" (an output unit), "element" or a Measure, such as
        `groups(...)`.
      norm: "l1" (the sum of |g|), "l2" (Euclidean), "max" (the largest |g|) or "rms" (the square root of the mean of
        |g|^2). A Measure has its own.
      shape: how a block is clipped: "hard" (to at most its limit), "tanh", "arctan", "algebraic", "smooth" (every
        block, smoothly to below its limit), "normalize" (every block to its limit) or "drop" (to zero beyond its
        limit).
      nonfinite: "zero" sets a block whose norm is not finite to zero; "propagate" passes it on unchanged.
      mask: which leaves the rule applies to: a pytree of booleans that is a prefix of the parameters, or a function
        that takes the parameters or gradients and returns one. The others pass unchanged and do not count in the norm.
        None for all.

      scale_mask: which of the leaves that count in the norm are scaled, in the same form; None for all. The others pass
        as they are, also where the norm is not finite.

    Returns:
      A GradientTransformation with a `ClipState`, or a dict of them by name; updates keep the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `max_norm` is negative or NaN, or a string is not one of those listed. In `init` and `update`: if a
        name matches no leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> gradients = {"kernel": jnp.array([3.0, 4.0]), "bias": jnp.array([0.5])}
      >>> rule = clip_by_norm(1.0)
      >>> print(rule.update(gradients, rule.init(gradients))[0])
      {'bias': Array([0.5], dtype=float32), 'kernel': Array([0.6, 0.8], dtype=float32)}
      >>> rule = clip_by_norm({"bias": 0.1, "*": 2.5})
      >>> print(rule.update(gradients, rule.init(gradients))[0])
      {'bias': Array([0.1], dtype=float32), 'kernel': Array([1.5, 2. ], dtype=float32)}

    References:
      Pascanu, Mikolov, Bengio, `On the difficulty of training recurrent neural networks
      <https://arxiv.org/abs/1211.5063>`_, 2012.

    torch's `clip_grad_norm_` divides by ||g|| + 1e-6. Here nothing is added to the norm.
    """
    measure = resolve_measure(per, norm)

    def at(threshold: ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
        limit = limits.constant(threshold, name="max_norm")
        return clip_by_limit(measure, limit, shape, nonfinite=nonfinite)

    return masked(scaling_only(at_thresholds("max_norm", max_norm, at, measure.label_of), scale_mask), mask)


def clip_by_global_norm(
    max_norm: Threshold,
    *,
    shape: Shape = "hard",
    nonfinite: Nonfinite = "zero",
    mask: Mask = None,
    scale_mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip the global norm of the gradients to at most max_norm.

    u = g min(1, c / ||g||), where ||g|| is the Euclidean norm of all leaves together. The direction does not change.

    Args:
      max_norm: c, at least 0, in the gradients' units: a float, an array, a schedule, which counts every update, from
        0, or a mapping from names to such, as in `clip_by_norm`: then each name has the norm of its own leaves.
      shape: how a block is clipped: "hard" (to at most its limit), "tanh", "arctan", "algebraic", "smooth" (every
        block, smoothly to below its limit), "normalize" (every block to its limit) or "drop" (to zero beyond its
        limit).
      nonfinite: "zero" sets a block whose norm is not finite to zero; "propagate" passes it on unchanged.
      mask: which leaves the rule applies to: a pytree of booleans that is a prefix of the parameters, or a function
        that takes the parameters or gradients and returns one. The others pass unchanged and do not count in the norm.
        None for all.

      scale_mask: which of the leaves that count in the norm are scaled, in the same form; None for all. The others pass
        as they are, also where the norm is not finite.

    Returns:
      A GradientTransformation with a `ClipState`, or a dict of them by name; updates keep the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `max_norm` is negative or NaN, or a string is not one of those listed. In `init` and `update`: if a
        name matches no leaf.

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

    Unlike that of `optax.clip_by_global_norm`, the norm is computed in float32 or wider for gradients of any dtype,
    does not overflow or underflow if the result can be represented, and is kept in the state.
    """
    return clip_by_norm(max_norm, per="tree", shape=shape, nonfinite=nonfinite, mask=mask, scale_mask=scale_mask)


def clip_by_block_rms(
    threshold: Threshold,
    *,
    per: Granularity = "tensor",
    shape: Shape = "hard",
    nonfinite: Nonfinite = "zero",
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip the root mean square of each tensor to at most threshold (update clipping of Adafactor).

    u = g min(1, threshold / rms(g)), rms(g) = sqrt(mean(g^2)), for each tensor g.

    Args:
      threshold: at least 0: a float, an array (a scalar, or a vector with one entry per tensor), a schedule, or a
        mapping from names to such, as in `clip_by_norm`.
      per: the block, which is the unit that is clipped together: "tensor", as published, "tree" (the whole pytree),
        "unit" (an output unit) or a Measure made by `tensors`, `units` or `groups`, whose norm is ignored.
      shape: how a block is clipped: "hard" (to at most its limit), "tanh", "arctan", "algebraic", "smooth" (every
        block, smoothly to below its limit), "normalize" (every block to its limit) or "drop" (to zero beyond its
        limit).
      nonfinite: "zero" sets a block whose norm is not finite to zero; "propagate" passes it on unchanged.
      mask: which leaves the rule applies to: a pytree of booleans that is a prefix of the parameters, or a function
        that takes the parameters or gradients and returns one. The others pass unchanged and do not count in the norm.
        None for all.

    Returns:
      A GradientTransformation with a `ClipState`; updates keep the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `threshold` is negative or NaN, a string is not one of those listed, or `per` is "element" or a
        Measure.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = clip_by_block_rms(1.0)
      >>> gradients = {"kernel": jnp.array([3.0, 3.0]), "bias": jnp.array([0.5])}
      >>> print(rule.update(gradients, rule.init(gradients))[0])
      {'bias': Array([0.5], dtype=float32), 'kernel': Array([1., 1.], dtype=float32)}

    References:
      Shazeer, Stern, `Adafactor: adaptive learning rates with sublinear memory cost
      <https://arxiv.org/abs/1804.04235>`_, 2018.

    The parameter is that of `optax.clip_by_block_rms`, which returns NaN where the threshold and the tensor are 0.
    """
    measure = resolve_fixed(per, "rms")

    def at(threshold: ScalarOrSchedule) -> optax.GradientTransformationExtraArgs:
        limit = limits.constant(threshold, name="threshold")
        return clip_by_limit(measure, limit, shape, nonfinite=nonfinite)

    return masked(at_thresholds("threshold", threshold, at, measure.label_of), mask)
