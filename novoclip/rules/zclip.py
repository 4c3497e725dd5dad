"""Limits from the mean and the deviation of the norms."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import Schedulable, check_choice, check_flag, check_integer, check_number, rate_at, value_at
from novoclip.clipping import clip
from novoclip.granularity import resolve_measure
from novoclip.limits import Limit, make_limit, select_blocks
from novoclip.measure import Measure
from novoclip.ranges import no_limit
from novoclip.safe_math import hypotenuse, square_root

MODES = ("adaptive_scaling", "mean", "percentile")


class ZScoreState(NamedTuple):
    """What `z_score` remembers of each block's norms.

    Attributes:
      seen: int32, norms other than 0 that were seen, at most `warmup`.
      mean: their mean; exponential after the warm-up.
      deviation: the root of their population variance; exponential after the warm-up. The
        root, because one norm of 1e20 would leave the variance infinite.
      spikes: int32, how many of the latest norms in a row were spikes.
    """

    seen: jax.Array
    mean: jax.Array
    deviation: jax.Array
    spikes: jax.Array


def z_score(
    z_threshold: Schedulable = 2.5,
    *,
    decay: Schedulable = 0.97,
    warmup: int = 25,
    max_norm: Schedulable = jnp.inf,
    mode: str = "adaptive_scaling",
    clip_factor: Schedulable = 1.0,
    skip_update_on_spike: bool = False,
    release: int | None = None,
    eps: Schedulable = 1e-6,
) -> Limit:
    """Limit each block whose norm lies more than z_threshold deviations above its mean.

    With z = (n - mean) / (sqrt(variance) + eps), a block with z > z_threshold is limited to

        clip_factor (mean + z_threshold^2 sqrt(variance) / z)    "adaptive_scaling"
        mean                                                     "mean"
        mean + z_threshold sqrt(variance)                        "percentile" (whose eps is 0)

    and then learned at that value e, other blocks at e = n: mean <- d mean + (1 - d) e, and with
    the new mean, variance <- d variance + (1 - d) (e - mean)^2. During the first `warmup`
    norms, whose mean and population variance are the initial values, only `max_norm` limits.
    Norms of 0 are passed over.

    Args:
      z_threshold: deviations that are still usual, above 0: a float, an array or a schedule.
      decay: d in [0, 1]: a float, an array or a schedule.
      warmup: norms to see before the first z-score.
      max_norm: an upper bound of the limit in the gradients' units; infinite by default.
      mode: one of the three above.
      clip_factor: of the limit in "adaptive_scaling", in (0, 1]: a float, an array or a schedule.
      skip_update_on_spike: whether a spike leaves mean and variance as they are.
      release: how many spikes in a row make a new level: from the next one on they are learned at
        e = n, and limited as before, until one is no spike. None for never, as published.
      eps: added to the deviation: a float, an array or a schedule.

    Returns:
      A Limit with a `ZScoreState`. For blocks that are not limited it reports where they would be.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or `mode` is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> limit = z_score(warmup=2, mode="mean")
      >>> state = limit.init(jnp.zeros(()))
      >>> for norm in (1.0, 3.0, 100.0):
      ...     limits, state = limit.update(jnp.array(norm), state, step=jnp.int32(0))
      >>> print(limits)
      2.0
    """
    check_number("z_threshold", z_threshold, exclude_low=True)
    check_number("decay", decay, high=1.0)
    check_integer("warmup", warmup, low=1)
    check_number("max_norm", max_norm)
    check_choice("mode", mode, MODES)
    check_number("clip_factor", clip_factor, high=1.0, exclude_low=True)
    check_flag("skip_update_on_spike", skip_update_on_spike)
    if release is not None:
        check_integer("release", release, low=1)
    check_number("eps", eps)

    def init(norms: Any) -> ZScoreState:
        zeros = functools.partial(jnp.zeros, norms.shape)
        return ZScoreState(zeros(jnp.int32), zeros(norms.dtype), zeros(norms.dtype), zeros(jnp.int32))

    def update(
        norms: Any, state: Any, param_norms: Any = None, /, *, step: jax.Array, **extra: Any
    ) -> tuple[Any, ZScoreState]:
        del param_norms, extra
        margin = 0.0 if mode == "percentile" else value_at(eps, step, norms, "eps")
        threshold = value_at(z_threshold, step, norms, "z_threshold")
        warm = state.seen >= warmup
        deviation = state.deviation
        edge = state.mean + threshold * (deviation + margin)
        spike = warm & (norms > edge)
        if mode == "adaptive_scaling":
            # 1 / z, written so that a deviation of 0 needs no division by it.
            inverse = (deviation + margin) / jnp.where(spike, norms - state.mean, 1)
            replacement = state.mean + threshold * deviation * (threshold * inverse)
            replacement = value_at(clip_factor, step, norms, "clip_factor") * replacement
        else:
            replacement = state.mean if mode == "mean" else edge
        bound = jnp.where(warm, jnp.where(spike, replacement, edge), no_limit(norms.dtype))

        released = state.spikes >= release if release is not None else jnp.zeros(norms.shape, bool)
        learned = jnp.where(spike & ~released, replacement, norms)
        seen = jnp.minimum(state.seen + 1, warmup)
        # Welford's running mean and variance while warming up.
        rate = jnp.where(warm, rate_at(decay, step, norms, "decay"), 1 / seen.astype(norms.dtype))
        mean = state.mean + rate * (learned - state.mean)
        residual = jnp.where(warm, learned - mean, learned - state.mean)
        surprise = square_root(jnp.abs(learned - mean)) * square_root(jnp.abs(residual))
        deviation = hypotenuse(square_root(1 - rate) * deviation, square_root(rate) * surprise)
        limits = jnp.minimum(bound, value_at(max_norm, step, norms, "max_norm"))
        if skip_update_on_spike:
            mean, deviation = select_blocks(spike & ~released, (state.mean, state.deviation), (mean, deviation))
        spikes = jnp.where(spike, jnp.minimum(state.spikes, jnp.iinfo(jnp.int32).max - 1) + 1, 0)
        return limits, select_blocks(norms != 0, ZScoreState(seen, mean, deviation, spikes), state)

    # A factor below 1 of a limit below 0 would raise it.
    signed = isinstance(clip_factor, float | int) and clip_factor == 1
    return make_limit(init, update, name=f"z_score(warmup={warmup})", signed=signed)


def zclip(
    z_threshold: Schedulable = 2.5,
    *,
    decay: Schedulable = 0.97,
    warmup: int = 25,
    max_norm: Schedulable = 1.0,
    mode: str = "adaptive_scaling",
    clip_factor: Schedulable = 1.0,
    skip_update_on_spike: bool = False,
    release: int | None = None,
    eps: Schedulable = 1e-6,
    per: str | Measure = "tree",
    norm: str = "l2",
    shape: str = "hard",
    nonfinite: str = "zero",
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip norms that lie far above their running mean, measured in deviations (ZClip).

    u = g min(1, c / n). With z = (n - mean) / (sqrt(variance) + eps), a norm with z > z_threshold has the limit
    c = clip_factor (mean + z_threshold^2 sqrt(variance) / z); `z_score` says how mean and variance learn,
    and has the two other modes.

    If the level of the norms rises for good by more than half, "adaptive_scaling" and
    "mean" as published take every later step for a spike and hold on to the old level: give a
    `release`, such as 20, or take "percentile", which follows.

    Args:
      z_threshold: deviations that are still usual, above 0: a float, an array or a schedule.
      decay: of the running mean and variance, in [0, 1] (the authors' alpha).
      warmup: steps without z-scores; their norms give the first mean and variance.
      max_norm: an upper bound of the limit, in the gradients' units; `jnp.inf` for none.
      mode: "adaptive_scaling" (the further out, the lower the limit), "mean" or "percentile"
        (the mean plus z_threshold deviations).
      clip_factor: of the limit in "adaptive_scaling", in (0, 1]: a float, an array or a schedule.
      skip_update_on_spike: whether a spike leaves mean and variance as they are. It is clipped all the same.
      release: how many spikes in a row make a new level, which is then learned; None for never.
      eps: added to the deviation, in the gradients' units: a float, an array or a schedule. The authors'
        1e-6 is much beside norms of 1e-5.
      per: the blocks: "tree", "tensor", "unit", "element" or a Measure.
      norm: "l1", "l2", "max" or "rms".
      shape: "hard", "tanh", "arctan", "algebraic", "smooth", "normalize" or "drop".
      nonfinite: "zero" sets a block whose norm is not finite to zero; "propagate" passes it
        on. Neither is learned.
      mask: which leaves take part: a pytree of booleans that is a prefix of the parameters, or a function that
        returns one. The others pass unchanged and count for no norm. None for all.

    Returns:
      A GradientTransformation with a `ClipState` whose `limit_state` is a `ZScoreState`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = zclip(warmup=2, max_norm=jnp.inf, mode="mean")
      >>> state = rule.init(jnp.zeros(2))
      >>> for size in (1.0, 1.0, 100.0):
      ...     updates, state = rule.update(size * jnp.array([3.0, 4.0]), state)
      >>> print(updates, state.clipped)
      [3. 4.] 1

    References:
      Kumar et al., `ZClip: Adaptive spike mitigation for LLM pre-training
      <https://arxiv.org/abs/2504.02507>`_, 2025.

    The authors' code divides by n + 1e-6 when it scales, learns norms of 0, and has no limits
    per tensor.
    """
    limit = z_score(
        z_threshold,
        decay=decay,
        warmup=warmup,
        max_norm=max_norm,
        mode=mode,
        clip_factor=clip_factor,
        skip_update_on_spike=skip_update_on_spike,
        release=release,
        eps=eps,
    )
    return clip(resolve_measure(per, norm), limit, shape, nonfinite=nonfinite, mask=mask)
