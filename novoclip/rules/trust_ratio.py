"""Clip updates in proportion to the norm of the weights: LARS, LARC, LAMB, LUC."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from novoclip import limits
from novoclip.clipping import clip_by_limit
from novoclip.granularity import resolve_measure
from novoclip.typing import Granularity, Mask, Nonfinite, Norm, ScalarOrSchedule, Shape


def clip_by_trust_ratio(
    coefficient: ScalarOrSchedule = 1e-3,
    *,
    learning_rate: ScalarOrSchedule | None = None,
    min_norm: ScalarOrSchedule = 0.0,
    max_norm: ScalarOrSchedule = jnp.inf,
    per: Granularity = "tensor",
    norm: Norm = "l2",
    shape: Shape = "hard",
    nonfinite: Nonfinite = "zero",
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip or normalize each tensor's step in proportion to the norm of its weights (LARS, LARC, LAMB, LUC).

    u = g min(1, c / ||g||) with c = coefficient phi(||w||) / learning_rate. With shape="normalize", u = g c / ||g||.
    Where phi(||w||), the learning rate or g is 0, u = g. The published rules differ in g and in the arguments:

    | rule | g | arguments |
    |---|---|---|
    | LARS | gradient + weight decay, before learning rate and momentum | `shape="normalize"` |
    | LARC | gradient, before SGD with this learning rate | `learning_rate=lr` |
    | LAMB | Adam's direction + weight decay | `coefficient=1.0, shape="normalize"`, perhaps `max_norm=10.0` |
    | LAMB without larger steps | Adam's direction + weight decay | `coefficient=1.0` |
    | LUC of NovoGrad | first moment, before SGD with this learning rate | `learning_rate=lr` |

    Args:
      coefficient: the trust coefficient, at least 0: a float, an array or a schedule.
      learning_rate: learning rate of the optimizer after it, at least 0: a float, an array or a schedule. None for 1.
      min_norm: lower bound in phi(z) = min(max(z, min_norm), max_norm), at least 0, in the weights' units: a float, an
        array or a schedule.
      max_norm: upper bound in phi, at least 0, in the weights' units: a float, an array or a schedule. Infinite by
        default.
      per: the block, which is the unit that is clipped together: "tensor", as published, "tree" (the whole pytree),
        "unit" (an output unit), "element" or a Measure.
      norm: norm of a block and of its weights: "l1", "l2" (Euclidean), "max" or "rms". A Measure has its own.
      shape: how a block is clipped: "hard" (to at most its limit), "tanh", "arctan", "algebraic", "smooth" (every
        block, smoothly to below its limit), "normalize" (every block to its limit) or "drop" (to zero beyond its
        limit).
      nonfinite: "zero" sets a block whose norm is not finite to zero; "propagate" passes it on unchanged.
      mask: which leaves the rule applies to: a pytree of booleans that is a prefix of the parameters, or a function
        that takes the parameters or gradients and returns one. The others pass unchanged and do not count in the norm.
        None for all.

    Returns:
      A GradientTransformation with a `ClipState`; its `update` needs the parameters.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is negative or NaN, or a string is not one of those listed. In `update`: if the parameters
        are absent.

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

    The LARS paper divides by ||gradient|| + decay ||w||. Here, as in Optax, the divisor is the norm of the sum.
    NVIDIA's LARC scales gradients by at least 1e-7, and by just that where weights are 0; its LUC sets updates to 0
    there. Here updates of weights of 0 are not clipped.
    """
    limit = limits.trust_ratio(coefficient, learning_rate=learning_rate, min_norm=min_norm, max_norm=max_norm)
    return clip_by_limit(resolve_measure(per, norm), limit, shape, nonfinite=nonfinite, mask=mask)
