"""AdaGC: clip each tensor at a multiple of the running mean of its clipped norms."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import check_flag, check_integer, check_number, rate_at, value_at
from novoclip.blocks import l2_norm
from novoclip.clipping import clip_by_limit
from novoclip.granularity import resolve_blocks
from novoclip.limit import Limit, make_limit, select_blocks
from novoclip.ranges import is_limit, no_limit
from novoclip.safe_math import wide_ratio
from novoclip.typing import Granularity, Mask, Nonfinite, ScalarOrSchedule, Shape


class AdaGCState(NamedTuple):
    """State of `adagc`.

    Attributes:
      gamma: `(*blocks)`, smallest clipped norm during the warm-up, then running mean of the clipped norms; infinite
        before the first norm.
      seen: int32 `(*blocks)`, number of norms other than 0 so far, or with `learn_zeros` of all, at most `warmup`.
    """

    gamma: jax.Array
    seen: jax.Array


def _adagc(
    lambda_rel: ScalarOrSchedule,
    lambda_abs: ScalarOrSchedule,
    decay: ScalarOrSchedule,
    warmup: int,
    floor: ScalarOrSchedule,
    learn_zeros: bool,
) -> Limit:
    # With a factor below 1, the limit would decrease towards 0, step by step.
    check_number("lambda_rel", lambda_rel, low=1.0)
    check_number("lambda_abs", lambda_abs)
    check_number("decay", decay, high=1.0)
    check_integer("warmup", warmup, low=1)
    check_number("floor", floor)
    check_flag("learn_zeros", learn_zeros)

    def init(norms: Any) -> AdaGCState:
        return AdaGCState(jnp.full(norms.shape, no_limit(norms.dtype), norms.dtype), jnp.zeros(norms.shape, jnp.int32))

    def update(
        norms: Any, state: Any, param_norms: Any = None, /, *, step: jax.Array, **extra: Any
    ) -> tuple[Any, AdaGCState]:
        del param_norms
        warm = state.seen >= warmup
        total = extra["total"].astype(norms.dtype) if "total" in extra else l2_norm(norms)
        share = wide_ratio(norms, jnp.broadcast_to(jnp.where(total > 0, total, 1), norms.shape))
        most = value_at(lambda_abs, step, norms, "lambda_abs")
        bounded = is_limit(most)
        absolute = jnp.where(bounded & (share > 0), jnp.where(bounded, most, 1) * share, 0)
        # Where the global norm is within lambda_abs, this is at least the block's own norm, except for rounding.
        absolute = jnp.where(total <= most, jnp.maximum(absolute, norms), absolute)
        absolute = jnp.where(bounded, absolute, no_limit(norms.dtype))
        gamma = jnp.where(warm, state.gamma, 1)
        relative = value_at(lambda_rel, step, norms, "lambda_rel") * gamma
        limits = jnp.where(warm, relative, absolute)
        let_through = jnp.minimum(norms, limits)
        averaged = gamma + rate_at(decay, step, norms, "decay") * (let_through - gamma)
        learned = jnp.where(warm, averaged, jnp.minimum(state.gamma, let_through))
        learned = jnp.maximum(learned, value_at(floor, step, norms, "floor"))
        after = AdaGCState(learned, jnp.minimum(state.seen + 1, warmup))
        return limits, after if learn_zeros else select_blocks(let_through > 0, after, state)

    return make_limit(init, update, name=f"adagc(warmup={warmup})", needs_total=True)


def adagc(
    lambda_rel: ScalarOrSchedule = 2.0,
    *,
    lambda_abs: ScalarOrSchedule = jnp.inf,
    decay: ScalarOrSchedule = 0.98,
    warmup: int = 8,
    floor: ScalarOrSchedule = 0.0,
    learn_zeros: bool = False,
    per: Granularity = "tensor",
    shape: Shape = "hard",
    nonfinite: Nonfinite = "zero",
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip each tensor at a multiple of the running mean of its clipped norms (AdaGC).

    After the warm-up, c_t = lambda_rel gamma_{t-1} and gamma_t = decay gamma_{t-1} + (1 - decay) min(n_t, c_t). During
    the warm-up, the global norm is clipped at lambda_abs, and gamma is the smallest clipped norm of the block. Norms of
    0 are ignored, unless `learn_zeros`.

    As published (`adagc(1.05, lambda_abs=1.0, warmup=100)`), more than half of all steps are clipped once norms vary by
    20 %, and the limit rises by at most 0.1 % per step. The defaults clip outliers only: docs/defaults.md.

    Args:
      lambda_rel: multiple of the mean, at least 1: a float, an array or a schedule.
      lambda_abs: limit of the global norm during the warm-up, at least 0, in the gradients' units: a float, an array or
        a schedule.
      decay: decay rate of gamma, in [0, 1]: a float, an array or a schedule.
      warmup: number of norms in the warm-up of a block, at least 1; with `learn_zeros`, the number of steps.
      floor: lower bound of gamma, at least 0, in the gradients' units: a float, an array or a schedule. With 0, as
        published, a block whose gradients were tiny during the warm-up stays near zero. With a floor of 1e-3 of the
        usual norm, it recovers in 700 steps with `lambda_rel=1.5`, and in 7000 with 1.05.
      learn_zeros: whether norms of 0 are learned, and count in the warm-up, as in the authors' code. A block with a
        gradient of 0 during the warm-up then has a gamma of 0, and without a `floor` it never changes again.
      per: the block, which is the unit that is clipped together: "tensor", as published, "tree" (the whole pytree),
        "unit" (an output unit) or a Measure of Euclidean norms.
      shape: how a block is clipped: "hard" (to at most its limit), "tanh", "arctan", "algebraic", "smooth" (every
        block, smoothly to below its limit), "normalize" (every block to its limit) or "drop" (to zero beyond its
        limit).
      nonfinite: "zero" sets a block whose norm is not finite to zero; "propagate" passes it on unchanged.
      mask: which leaves the rule applies to: a pytree of booleans that is a prefix of the parameters, or a function
        that takes the parameters or gradients and returns one. The others pass unchanged and do not count in the norm.
        None for all.

    Returns:
      A GradientTransformation with a `ClipState` whose `limit_state` is an `AdaGCState`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of its range, a string is not one of those listed, or `per` is "element".

    Example:
      >>> import jax.numpy as jnp
      >>> rule = adagc(warmup=2)
      >>> state = rule.init(jnp.zeros(2))
      >>> for size in (0.1, 0.1, 100.0):
      ...     updates, state = rule.update(size * jnp.array([3.0, 4.0]), state)
      >>> print(updates, state.limits)
      [0.6 0.8] [1.]

    References:
      Wang et al., `AdaGC: Improving training stability for large language model pretraining
      <https://arxiv.org/abs/2502.11034>`_, 2025.

    The authors' code is `adagc(1.04, lambda_abs=1.0, decay=0.99, warmup=100, learn_zeros=True)`. The package
    pytorch_optimizer has 1.05 and 0.98, and a warm-up that is one step shorter than its `warmup_steps`.
    """
    limit = _adagc(lambda_rel, lambda_abs, decay, warmup, floor, learn_zeros)
    return clip_by_limit(resolve_blocks(per), limit, shape, nonfinite=nonfinite, mask=mask)
