"""Limits that depend on the present norm alone: a floor under clipping, and a band."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import Schedulable, check_number, value_at
from novoclip.clipping import clip
from novoclip.granularity import resolve_measure
from novoclip.limits import Limit, make_limit
from novoclip.measure import Measure


def _share_of_norm(max_norm: Schedulable, delta: Schedulable) -> Limit:
    check_number("max_norm", max_norm)
    check_number("delta", delta, high=1.0)

    def update(norms: Any, state: Any, param_norms: Any = None, /, *, step: jax.Array, **extra: Any) -> tuple[Any, Any]:
        del param_norms, extra
        return jnp.maximum(
            value_at(max_norm, step, norms, "max_norm"), value_at(delta, step, norms, "delta") * norms
        ), state

    return make_limit(lambda _: (), update, name="delta_gclip")


def delta_gclip(
    max_norm: Schedulable = 0.1,
    *,
    delta: Schedulable = 1e-3,
    per: str | Measure = "tree",
    norm: str = "l2",
    nonfinite: str = "zero",
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip at max_norm, but never below a share of the gradient (delta-GClip).

    u = g min(1, max(delta, c / ||g||)): a gradient however large still says how large it is,
    which is what convergence on wide networks is proved for. A spike of k times c has
    delta k times c left: this is no rule against outliers.

    Args:
      max_norm: c, at least 0, in the gradients' units: a float, an array or a schedule.
      delta: the least share, in [0, 1], likewise.
      per: the blocks: "tree", as published, "tensor", "unit", "element" or a Measure.
      norm: "l1", "l2", "max" or "rms".
      nonfinite: "zero" sets a block whose norm is not finite to zero; "propagate" passes it on.
      mask: which leaves take part: a pytree of booleans that is a prefix of the parameters, or a function that
        returns one. The others pass unchanged and count for no norm. None for all.

    Returns:
      A GradientTransformation with a `ClipState`; updates keep the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown.

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
    return clip(resolve_measure(per, norm), _share_of_norm(max_norm, delta), nonfinite=nonfinite, mask=mask)


def _band(min_norm: Schedulable, max_norm: Schedulable) -> Limit:
    check_number("min_norm", min_norm)
    check_number("max_norm", max_norm)

    def update(norms: Any, state: Any, param_norms: Any = None, /, *, step: jax.Array, **extra: Any) -> tuple[Any, Any]:
        del param_norms, extra
        low, high = value_at(min_norm, step, norms, "min_norm"), value_at(max_norm, step, norms, "max_norm")
        # 0 stands for an infinite norm too, and stays 0 otherwise.
        return jnp.where(norms > 0, jnp.minimum(jnp.maximum(norms, low), high), high), state

    return make_limit(lambda _: (), update, name="clip_to_band")


def clip_to_band(
    min_norm: Schedulable,
    max_norm: Schedulable,
    *,
    per: str | Measure = "element",
    norm: str = "l2",
    nonfinite: str = "zero",
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip from above and from below: no block but zero stays smaller than min_norm (BiClip).

    u = g min(max(||g||, min_norm), max_norm) / ||g||, and 0 where g = 0. Per element with both
    bounds close it is the sign of the gradient, as Adam's steps nearly are, without a state.

    Args:
      min_norm: at least 0, in the gradients' units: a float, an array or a schedule.
      max_norm: likewise; where it is less than min_norm, max_norm holds.
      per: the blocks: "element", as published, "tree", "tensor", "unit" or a Measure.
      norm: "l1", "l2", "max" or "rms".
      nonfinite: "zero" sets a block whose norm is not finite to zero; "propagate" passes it on.
      mask: which leaves take part: a pytree of booleans that is a prefix of the parameters, or a function that
        returns one. The others pass unchanged and count for no norm. None for all.

    Returns:
      A GradientTransformation with a `ClipState`; updates keep the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is negative or NaN, or a name is unknown.

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
    return clip(resolve_measure(per, norm), _band(min_norm, max_norm), "normalize", nonfinite=nonfinite, mask=mask)
