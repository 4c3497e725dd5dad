"""Limits relative to the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import Schedulable, check_number, value_at
from novoclip.clipping import clip
from novoclip.granularity import resolve_measure
from novoclip.limits import Limit, make_limit
from novoclip.measure import Measure


def share_of_parameters(clipping: Schedulable, *, eps: Schedulable = 1e-3) -> Limit:
    """Limit each block to a share of the norm of its parameters, c = clipping max(||w||, eps).

    Args:
      clipping: at least 0: a float, an array or a schedule.
      eps: the least norm of parameters, likewise.

    Returns:
      A Limit without state, which needs the parameters.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is negative or NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> limit = share_of_parameters(0.5)
      >>> limits, _ = limit.update(jnp.ones(2), (), jnp.array([4.0, 0.0]), step=jnp.int32(0))
      >>> print(limits)
      [2.e+00 5.e-04]
    """
    check_number("clipping", clipping)
    check_number("eps", eps)

    def update(norms: Any, state: Any, param_norms: Any = None, /, *, step: jax.Array, **extra: Any) -> tuple[Any, Any]:
        del extra
        sizes = jnp.maximum(param_norms.astype(norms.dtype), value_at(eps, step, norms, "eps"))
        return value_at(clipping, step, norms, "clipping") * sizes, state

    return make_limit(lambda _: (), update, needs_params=True, name="share_of_parameters")


def agc(
    clipping: Schedulable = 0.01,
    *,
    eps: Schedulable = 1e-3,
    per: str | Measure = "unit",
    norm: str = "l2",
    shape: str = "hard",
    nonfinite: str = "zero",
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip each unit's gradient at a share of the norm of its weights (adaptive gradient clipping, AGC).

    u = g min(1, clipping max(||w||, eps) / ||g||) for each unit, with the unit's own weights w.

    The authors leave out the last linear layer: `optax.masked(agc(0.01), {"head": False, ...})`.

    Args:
      clipping: at least 0: a float, an array or a schedule. 0.01 is for batches of 4096;
        smaller batches take more.
      eps: the least norm of weights, without which weights of zero could never move.
      per: the blocks: "unit" (the outputs of Flax and TensorFlow kernels; `units("torch")` for
        kernels in torch's layout, `units(axes)` for others), "tensor", as in DreamerV3 (with
        0.3), "tree", "element" or a Measure.
      norm: "l1", "l2", "max" or "rms".
      shape: "hard", "tanh", "arctan", "algebraic", "smooth", "normalize" or "drop".
      nonfinite: "zero" sets a block whose norm is not finite to zero; "propagate" passes it on.
      mask: which leaves take part: a pytree of booleans that is a prefix of the parameters, or a function that
        returns one. The others pass unchanged and count for no norm. None for all.

    Returns:
      A GradientTransformation with a `ClipState`; its `update` needs the parameters.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is negative or NaN, or a name is unknown. In `update`: if the
        parameters are absent.

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

    `optax.adaptive_grad_clip` takes a kernel of three axes for attention, which is wrong for
    1-D convolutions; the least gradient norm there, 1e-6, is not needed here.
    """
    return clip(
        resolve_measure(per, norm), share_of_parameters(clipping, eps=eps), shape, nonfinite=nonfinite, mask=mask
    )
