"""Limits relative to the average of what was let through, begun with the smallest of the warm-up."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import Schedulable, check_integer, check_number, rate_at, value_at
from novoclip.blocks import l2_norm
from novoclip.clipping import clip
from novoclip.granularity import resolve_blocks
from novoclip.limits import Limit, make_limit, select_blocks
from novoclip.measure import Measure
from novoclip.ranges import no_limit
from novoclip.safe_math import wide_ratio


class AdaGCState(NamedTuple):
    """What AdaGC remembers.

    Attributes:
      gamma: `(*blocks)`, the smallest clipped norm of the warm-up, then their running mean;
        infinite before the first.
      seen: int32 `(*blocks)`, norms other than 0 that were seen, at most `warmup`.
    """

    gamma: jax.Array
    seen: jax.Array


def _adagc(
    lambda_rel: Schedulable, lambda_abs: Schedulable, decay: Schedulable, warmup: int, floor: Schedulable
) -> Limit:
    # Below 1 the limit would fall at every step, towards 0.
    check_number("lambda_rel", lambda_rel, low=1.0)
    check_number("lambda_abs", lambda_abs)
    check_number("decay", decay, high=1.0)
    check_integer("warmup", warmup, low=1)
    check_number("floor", floor)

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
        absolute = jnp.where(share > 0, most * share, 0)
        # Where all of the gradient is within lambda_abs, this is above the block's own norm, but for rounding.
        absolute = jnp.where(total <= most, jnp.maximum(absolute, norms), absolute)
        gamma = jnp.where(warm, state.gamma, 1)
        relative = value_at(lambda_rel, step, norms, "lambda_rel") * gamma
        limits = jnp.where(warm, relative, absolute)
        let_through = jnp.minimum(norms, limits)
        averaged = gamma + rate_at(decay, step, norms, "decay") * (let_through - gamma)
        learned = jnp.where(warm, averaged, jnp.minimum(state.gamma, let_through))
        learned = jnp.maximum(learned, value_at(floor, step, norms, "floor"))
        return limits, select_blocks(let_through > 0, AdaGCState(learned, jnp.minimum(state.seen + 1, warmup)), state)

    return make_limit(init, update, name=f"adagc(warmup={warmup})", needs_total=True)


def adagc(
    lambda_rel: Schedulable = 1.05,
    *,
    lambda_abs: Schedulable = 1.0,
    decay: Schedulable = 0.98,
    warmup: int = 100,
    floor: Schedulable = 0.0,
    per: str | Measure = "tensor",
    shape: str = "hard",
    nonfinite: str = "zero",
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip each tensor at a little more than the average of what was let through (AdaGC).

    After the warm-up c_t = lambda_rel gamma_{t-1} and
    gamma_t = decay gamma_{t-1} + (1 - decay) min(n_t, c_t). In the warm-up the whole gradient is
    clipped at lambda_abs, and gamma is the smallest norm that a block then has. Norms of 0 are
    passed over.

    With the authors' numbers more than half of all steps are clipped once norms vary by a fifth,
    and the limit rises by 0.1 % a step at most: 1.5 and more for `lambda_rel` clips outliers only.

    Args:
      lambda_rel: at least 1: a float, an array or a schedule.
      lambda_abs: limit of the whole gradient's norm in the warm-up, in its units, likewise.
      decay: of gamma, in [0, 1], likewise.
      warmup: how many norms of a block begin its gamma, at least 1.
      floor: the least gamma, in the gradients' units, likewise. With 0, as published, a block whose
        gradients were tiny in the warm-up is held near zero; from a floor of 1e-3 of the usual norm it gets free in
        700 steps with `lambda_rel=1.5`, in 7000 with 1.05.
      per: the blocks: "tensor", as published, "tree", "unit" or a Measure of Euclidean norms.
      shape: "hard", "tanh", "arctan", "algebraic", "smooth", "normalize" or "drop".
      nonfinite: "zero" sets a block whose norm is not finite to zero; "propagate" passes it
        on. Neither enters gamma.
      mask: which leaves take part: a pytree of booleans that is a prefix of the parameters, or a function that
        returns one. The others pass unchanged and count for no norm. None for all.

    Returns:
      A GradientTransformation with a `ClipState` whose `limit_state` is an `AdaGCState`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, a name is unknown, or `per` is "element".

    Example:
      >>> import jax.numpy as jnp
      >>> rule = adagc(warmup=2)
      >>> state = rule.init(jnp.zeros(2))
      >>> for size in (0.1, 0.1, 100.0):
      ...     updates, state = rule.update(size * jnp.array([3.0, 4.0]), state)
      >>> print(updates, state.limits)
      [0.315 0.42 ] [0.525]

    References:
      Wang et al., `AdaGC: Improving training stability for large language model pretraining
      <https://arxiv.org/abs/2502.11034>`_, 2025.

    The authors count steps, not norms, for the warm-up, and have no floor.
    """
    limit = _adagc(lambda_rel, lambda_abs, decay, warmup, floor)
    return clip(resolve_blocks(per), limit, shape, nonfinite=nonfinite, mask=mask)
