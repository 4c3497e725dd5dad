"""delta-GClip and BiClip: limits that depend on the current norm alone."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import check_number, value_at
from novoclip.clipping import clip_by_limit
from novoclip.granularity import resolve_measure
from novoclip.limit import Limit, make_limit
from novoclip.typing import Granularity, Mask, Nonfinite, Norm, ScalarOrSchedule


def _share_of_norm(max_norm: ScalarOrSchedule, delta: ScalarOrSchedule) -> Limit:
    check_number("max_norm", max_norm)
    check_number("delta", delta, high=1.0)

    def update(norms: Any, state: Any, param_norms: Any = None, /, *, step: jax.Array, **extra: Any) -> tuple[Any, Any]:
        del param_norms, extra
        return jnp.maximum(
            value_at(max_norm, step, norms, "max_norm"), value_at(delta, step, norms, "delta") * norms
        ), state

    return make_limit(lambda _: (), update, name="delta_gclip")


def delta_gclip(
    max_norm: ScalarOrSchedule = 0.1,
    *,
    delta: ScalarOrSchedule = 1e-3,
    per: Granularity = "tree",
    norm: Norm = "l2",
    nonfinite: Nonfinite = "zero",
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip gradients at max_norm, but scale them by no less than a fraction delta (delta-GClip).

    u = g min(1, max(delta, c / ||g||)). Clipped norms still increase with the norm of the gradient, and convergence on
    wide networks is proved for this form. A spike of k times c keeps a norm of delta k c: this rule does not remove
    outliers.

    Args:
      max_norm: c, at least 0, in the gradients' units: a float, an array or a schedule.
      delta: smallest factor by which gradients are scaled, in [0, 1]: a float, an array or a schedule.
      per: the block, which is the unit that is clipped together: "tree" (the whole pytree), as published, "tensor",
        "unit" (an output unit), "element" or a Measure.
      norm: norm of a block: "l1", "l2" (Euclidean), "max" or "rms". A Measure has its own.
      nonfinite: "zero" sets a block whose norm is not finite to zero; "propagate" passes it on unchanged.
      mask: which leaves the rule applies to: a pytree of booleans that is a prefix of the parameters, or a function
        that takes the parameters or gradients and returns one. The others pass unchanged and do not count in the norm.
        None for all.

    Returns:
      A GradientTransformation with a `ClipState`; updates keep the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of its range, or a string is not one of those listed.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = delta_gclip(1.0, delta=0.1)
      >>> gradient = jnp.array([300.0, 400.0])
      >>> print(rule.update(gradient, rule.init(gradient))[0])
      [30. 40.]

    References:
      Tucat, Mukherjee, Sen, Sun, Rivasplata, `Regularized gradient clipping provably trains wide
      and deep neural networks <https://arxiv.org/abs/2404.08624>`_, 2024.
    """
    return clip_by_limit(resolve_measure(per, norm), _share_of_norm(max_norm, delta), nonfinite=nonfinite, mask=mask)


def _band(min_norm: ScalarOrSchedule, max_norm: ScalarOrSchedule) -> Limit:
    check_number("min_norm", min_norm)
    check_number("max_norm", max_norm)

    def update(norms: Any, state: Any, param_norms: Any = None, /, *, step: jax.Array, **extra: Any) -> tuple[Any, Any]:
        del param_norms, extra
        low, high = value_at(min_norm, step, norms, "min_norm"), value_at(max_norm, step, norms, "max_norm")
        # A norm of 0 may stand for one that is not finite. A block of zeros is not scaled, whatever its limit.
        return jnp.where(norms > 0, jnp.minimum(jnp.maximum(norms, low), high), high), state

    return make_limit(lambda _: (), update, name="clip_to_band")


def clip_to_band(
    min_norm: ScalarOrSchedule,
    max_norm: ScalarOrSchedule,
    *,
    per: Granularity = "element",
    norm: Norm = "l2",
    nonfinite: Nonfinite = "zero",
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip gradients from above and below, so that norms lie in [min_norm, max_norm] (BiClip).

    u = g min(max(||g||, min_norm), max_norm) / ||g||, and 0 where g = 0. Per element and with close bounds, it is the
    sign of the gradient, which is similar to Adam's steps but needs no state.

    Args:
      min_norm: lower bound of the norm, at least 0, in the gradients' units: a float, an array or a schedule.
      max_norm: upper bound of the norm, at least 0, in the gradients' units: a float, an array or a schedule. Where it
        is below min_norm, max_norm applies.
      per: the block, which is the unit that is clipped together: "element", as published, "tree" (the whole pytree),
        "tensor", "unit" (an output unit) or a Measure.
      norm: norm of a block: "l1", "l2" (Euclidean), "max" or "rms". A Measure has its own.
      nonfinite: "zero" sets a block whose norm is not finite to zero; "propagate" passes it on unchanged.
      mask: which leaves the rule applies to: a pytree of booleans that is a prefix of the parameters, or a function
        that takes the parameters or gradients and returns one. The others pass unchanged and do not count in the norm.
        None for all.

    Returns:
      A GradientTransformation with a `ClipState`; updates keep the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is negative or NaN, or a string is not one of those listed.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = clip_to_band(0.1, 1.0)
      >>> gradient = jnp.array([0.01, -5.0, 0.0, 0.5])
      >>> print(rule.update(gradient, rule.init(gradient))[0])
      [ 0.1 -1.   0.   0.5]

    References:
      Lee, Zaheer, Li, `Efficient distributed optimization under heavy-tailed noise
      <https://arxiv.org/abs/2502.04164>`_, 2025.
    """
    return clip_by_limit(
        resolve_measure(per, norm), _band(min_norm, max_norm), "normalize", nonfinite=nonfinite, mask=mask
    )
