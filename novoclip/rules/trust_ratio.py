"""Limits that trust a step as far as the parameters are large: LARS, LARC, LAMB, LUC."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import Schedulable, check_number, value_at
from novoclip.clipping import clip
from novoclip.granularity import resolve_measure
from novoclip.limits import Limit, make_limit
from novoclip.measure import Measure
from novoclip.ranges import no_limit
from novoclip.safe_math import wide_ratio


def trust_ratio(
    coefficient: Schedulable = 1e-3,
    *,
    learning_rate: Schedulable | None = None,
    min_norm: Schedulable = 0.0,
    max_norm: Schedulable = jnp.inf,
) -> Limit:
    """Limit each block to coefficient phi(||w||) / learning_rate, with no limit where either of the two is 0.

    phi(z) = min(max(z, min_norm), max_norm).

    Args:
      coefficient: at least 0: a float, an array or a schedule.
      learning_rate: at least 0, likewise; None for 1. Where it is 0, there is no limit.
      min_norm: at least 0, likewise.
      max_norm: at least 0, likewise.

    Returns:
      A Limit without state, which needs the parameters.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is negative or NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> limit = trust_ratio(0.5, learning_rate=0.1)
      >>> limits, _ = limit.update(jnp.ones(2), (), jnp.array([4.0, 0.0]), step=jnp.int32(0))
      >>> print(limits)
      [20. inf]
    """
    for name, number in (("coefficient", coefficient), ("min_norm", min_norm), ("max_norm", max_norm)):
        check_number(name, number)
    if learning_rate is not None:
        check_number("learning_rate", learning_rate)

    def update(norms: Any, state: Any, param_norms: Any = None, /, *, step: jax.Array, **extra: Any) -> tuple[Any, Any]:
        del extra
        low, high = value_at(min_norm, step, norms, "min_norm"), value_at(max_norm, step, norms, "max_norm")
        sizes = jnp.minimum(jnp.maximum(param_norms.astype(norms.dtype), low), high)
        rate = 1.0 if learning_rate is None else learning_rate
        by = value_at(rate, step, norms, "learning_rate")
        usable = (sizes > 0) & (by > 0)
        limits = wide_ratio(value_at(coefficient, step, norms, "coefficient") * sizes, jnp.where(by > 0, by, 1))
        return jnp.where(usable, limits, no_limit(norms.dtype)), state

    return make_limit(lambda _: (), update, needs_params=True, name="trust_ratio")


def clip_by_trust_ratio(
    coefficient: Schedulable = 1e-3,
    *,
    learning_rate: Schedulable | None = None,
    min_norm: Schedulable = 0.0,
    max_norm: Schedulable = jnp.inf,
    per: str | Measure = "tensor",
    norm: str = "l2",
    shape: str = "hard",
    nonfinite: str = "zero",
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip each tensor's step, or set its length, in proportion to the norm of its weights (LARS, LARC, LAMB, LUC).

    u = g min(1, c / ||g||) with c = coefficient phi(||w||) / learning_rate, or g c / ||g|| with
    shape="normalize"; g where phi(||w||), the learning rate or g is 0. Which published rule that is depends on g:

    | rule | g | arguments |
    |---|---|---|
    | LARS | gradient + weight decay, before learning rate and momentum | `shape="normalize"` |
    | LARC | gradient, before a descent with this learning rate | `learning_rate=lr` |
    | LAMB | Adam's direction + weight decay | `coefficient=1.0, shape="normalize"`, perhaps `max_norm=10.0` |
    | LAMB, never longer | the same | `coefficient=1.0` |
    | LUC of NovoGrad | the moment, before a descent with this learning rate | `learning_rate=lr` |

    Args:
      coefficient: at least 0: a float, an array or a schedule.
      learning_rate: that of the descent behind, at least 0, likewise; None for 1.
      min_norm: of phi(z) = min(max(z, min_norm), max_norm), at least 0, likewise.
      max_norm: likewise.
      per: the blocks: "tensor", as published, "tree", "unit", "element" or a Measure.
      norm: "l1", "l2", "max" or "rms".
      shape: "hard", "normalize", "tanh", "arctan", "algebraic", "smooth" or "drop".
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
      >>> rule = clip_by_trust_ratio(0.1)
      >>> params, gradient = jnp.array([6.0, 8.0]), jnp.array([3.0, 4.0])
      >>> print(rule.update(gradient, rule.init(params), params)[0])
      [0.6 0.8]

    References:
      You, Gitman, Ginsburg, `Large batch training of convolutional networks
      <https://arxiv.org/abs/1708.03888>`_, 2017 (LARS). You et al., `Large batch optimization for
      deep learning: training BERT in 76 minutes <https://arxiv.org/abs/1904.00962>`_, 2019 (LAMB).

    The LARS paper divides by ||gradient|| + decay ||w||; here, as in Optax, it is the norm of the
    sum. NVIDIA's LARC keeps at least 1e-7 of a gradient, and where weights are 0 nothing else; its LUC
    then moves nothing. Here weights of 0 are free.
    """
    limit = trust_ratio(coefficient, learning_rate=learning_rate, min_norm=min_norm, max_norm=max_norm)
    return clip(resolve_measure(per, norm), limit, shape, nonfinite=nonfinite, mask=mask)
