"""The limit of ZClip: the running mean of the norms plus a number of standard deviations."""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from novoclip.arguments import check_choice, check_flag, check_integer, check_number, rate_at, value_at
from novoclip.limit import Limit, make_limit, select_blocks
from novoclip.ranges import no_limit
from novoclip.safe_math import hypotenuse, square_root
from novoclip.typing import ScalarOrSchedule

MODES = ("adaptive_scaling", "mean", "percentile")


class ZClipState(NamedTuple):
    """State of `zclip`: statistics of the norms of each block.

    Attributes:
      seen: int32, number of norms other than 0 so far, at most `warmup`.
      mean: mean of the norms; exponential after the warm-up.
      deviation: population standard deviation of the norms; exponential after the warm-up. The variance itself would
        stay infinite after one norm of 1e20.
      spikes: int32, how many of the latest norms in a row were spikes.
    """

    seen: jax.Array
    mean: jax.Array
    deviation: jax.Array
    spikes: jax.Array


def zclip(
    z_threshold: ScalarOrSchedule = 2.5,
    *,
    decay: ScalarOrSchedule = 0.97,
    warmup: int = 25,
    max_norm: ScalarOrSchedule = jnp.inf,
    mode: Literal["adaptive_scaling", "mean", "percentile"] = "adaptive_scaling",
    clip_factor: ScalarOrSchedule = 1.0,
    skip_update_on_spike: bool = False,
    release: int | None = None,
    eps: ScalarOrSchedule = 1e-6,
) -> Limit:
    """Limit each block whose norm exceeds its running mean by more than z_threshold standard deviations (ZClip).

    With z = (n - mean) / (sqrt(variance) + eps), a block with z > z_threshold is a spike, and has the limit

        clip_factor (mean + z_threshold^2 sqrt(variance) / z)    "adaptive_scaling"
        mean                                                     "mean"
        mean + z_threshold sqrt(variance)                        "percentile", where z has no eps

    The mean and the variance then learn from e, which is that limit for spikes and n for other blocks:
    mean <- d mean + (1 - d) e, and with the new mean, variance <- d variance + (1 - d) (e - mean)^2. The first `warmup`
    norms are limited by `max_norm` only; their mean and population variance are the initial values. Norms of 0 are
    ignored.

    Args:
      z_threshold: number of standard deviations beyond which a norm is a spike, above 0: a float, an array or a
        schedule.
      decay: d, decay rate of the mean and the variance, in [0, 1]: a float, an array or a schedule.
      warmup: number of norms to see before the first z-score, at least 1.
      max_norm: upper bound of the limit, at least 0, in the norms' units: a float, an array or a schedule. Infinite by
        default.
      mode: "adaptive_scaling" (the larger the spike, the lower the limit), "mean" or "percentile", the formula above.
      clip_factor: factor of the limit in "adaptive_scaling", in (0, 1]: a float, an array or a schedule.
      skip_update_on_spike: whether spikes leave the mean and the variance unchanged.
      release: number of spikes in a row, at least 1, after which further spikes count as a new level: they are clipped
        as before, but learned at e = n, until a norm is not a spike. None for never, as published.
      eps: added to the standard deviation, at least 0, in the norms' units: a float, an array or a schedule.

    Returns:
      A Limit with a `ZClipState`. For a block that is not a spike, it returns the norm above which it would be one.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of its range, or `mode` is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> limit = zclip(warmup=2, mode="mean")
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

    def init(norms: Any) -> ZClipState:
        zeros = functools.partial(jnp.zeros, norms.shape)
        return ZClipState(zeros(jnp.int32), zeros(norms.dtype), zeros(norms.dtype), zeros(jnp.int32))

    def update(
        norms: Any, state: Any, param_norms: Any = None, /, *, step: jax.Array, **extra: Any
    ) -> tuple[Any, ZClipState]:
        del param_norms, extra
        margin = 0.0 if mode == "percentile" else value_at(eps, step, norms, "eps")
        threshold = value_at(z_threshold, step, norms, "z_threshold")
        warm = state.seen >= warmup
        deviation = state.deviation
        edge = state.mean + threshold * (deviation + margin)
        spike = warm & (norms > edge)
        if mode == "adaptive_scaling":
            # 1 / z. It is written so as not to divide by a standard deviation of 0.
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
        return limits, select_blocks(norms != 0, ZClipState(seen, mean, deviation, spikes), state)

    # A factor below 1 would raise a limit below 0.
    signed = isinstance(clip_factor, float | int) and clip_factor == 1
    return make_limit(init, update, name=f"zclip(warmup={warmup})", signed=signed)
