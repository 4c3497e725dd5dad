"""Scale updates to the norm of the weights, as in LARS and LAMB."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import check_number, value_at
from novoclip.clipping import clip_by_limit
from novoclip.granularity import resolve_blocks
from novoclip.limit import Limit, make_limit
from novoclip.ranges import no_limit
from novoclip.safe_math import wide_ratio
from novoclip.typing import Granularity, Mask, Nonfinite, ScalarOrSchedule


def _ratio_of_norms(min_norm: ScalarOrSchedule, trust_coefficient: ScalarOrSchedule, eps: ScalarOrSchedule) -> Limit:
    for name, number in (("min_norm", min_norm), ("trust_coefficient", trust_coefficient), ("eps", eps)):
        check_number(name, number)

    def update(norms: Any, state: Any, param_norms: Any = None, /, *, step: jax.Array, **extra: Any) -> tuple[Any, Any]:
        del extra
        least = value_at(min_norm, step, norms, "min_norm")
        sizes = jnp.maximum(param_norms.astype(norms.dtype), least)
        below = jnp.maximum(norms, least)
        known = (sizes > 0) & (below > 0)
        share = wide_ratio(norms, jnp.where(known, below + value_at(eps, step, norms, "eps"), 1))
        limits = value_at(trust_coefficient, step, norms, "trust_coefficient") * sizes * share
        return jnp.where(known, limits, no_limit(norms.dtype)), state

    return make_limit(lambda _: (), update, needs_params=True, name="scale_by_trust_ratio")


def scale_by_trust_ratio(
    min_norm: ScalarOrSchedule = 0.0,
    trust_coefficient: ScalarOrSchedule = 1.0,
    eps: ScalarOrSchedule = 0.0,
    *,
    per: Granularity = "tensor",
    nonfinite: Nonfinite = "zero",
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Scale each tensor's update to the norm of its weights (the trust ratio of LARS and LAMB).

    u = g trust_coefficient phi(||w||) / (phi(||g||) + eps) with phi(z) = max(z, min_norm). Where phi(||w||) or
    phi(||g||) is 0, u = g.

    Args:
      min_norm: lower bound of the norms of weights and updates, at least 0: a float, an array or a schedule.
      trust_coefficient: factor of the ratio, at least 0: a float, an array or a schedule.
      eps: added to the norm of the update, at least 0, in its units: a float, an array or a schedule.
      per: the block, which is the unit that is scaled together: "tensor", "tree" (the whole pytree), "unit" (an output
        unit) or a Measure.
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
      >>> rule = scale_by_trust_ratio()
      >>> params, updates = jnp.array([6.0, 8.0]), jnp.array([3.0, 4.0])
      >>> print(rule.update(updates, rule.init(params), params)[0])
      [6. 8.]

    References:
      You et al., `Large batch optimization for deep learning: training BERT in 76 minutes
      <https://arxiv.org/abs/1904.00962>`_, 2019.

    Parameters, order and defaults are those of `optax.scale_by_trust_ratio`. To clip at the trust ratio, without making
    updates larger, use `clip_by_trust_ratio`.
    """
    limit = _ratio_of_norms(min_norm, trust_coefficient, eps)
    return clip_by_limit(resolve_blocks(per), limit, "normalize", nonfinite=nonfinite, mask=mask)
