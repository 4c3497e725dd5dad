"""Skip steps whose gradient norm or loss is far above the recent ones."""

from __future__ import annotations

import numbers
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from novoclip import limits
from novoclip.arguments import check_choice, check_integer
from novoclip.counting import advance_leaf_counts, count, count_in_a_row, in_place, safe_increment
from novoclip.granularity import resolve_measure
from novoclip.guards.losses import checked_value_limit, loss_of, never_zero, scalar_loss
from novoclip.guards.shown import show
from novoclip.guards.spike_state import SpikeState, start_state
from novoclip.guards.taken import apply_if
from novoclip.learning import freeze_nonfinite
from novoclip.leaves import finite_leaves, is_measured, named_leaves, reject_integers, with_numbers
from novoclip.limit import Limit, select_blocks
from novoclip.measure import norm_shapes
from novoclip.origin import check_origin, made_by
from novoclip.platforms import if_needed
from novoclip.ranges import limits_as
from novoclip.rounding import is_beyond, rounding_of
from novoclip.transforms import update_of_finite
from novoclip.typing import Mask
from novoclip.wrappers.inner import checked_inner

LEARN = ("good", "all")


def skip_spikes(
    inner: optax.GradientTransformation,
    limit: Limit | float | None = None,
    *,
    value_limit: Limit | float | bool | None = None,
    max_in_a_row: int = 16,
    learn: Literal["good", "all"] = "good",
    clip: Limit | float | None = None,
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Skip steps whose gradient norm, or loss, is far above those of the recent good steps.

    A step is a spike if ||g|| > c, where `limit` computes c from the norms of the good steps before it, or if
    `update(..., value=loss)` is given and the loss is above what `value_limit` computes from the losses of those
    steps. The updates of a spike are zero, and moments, counters and weight decay of `inner` do not change. A step
    whose norm or loss is not finite is always skipped. The limits learn from neither. A skipped step is computed of
    zeros, and not used: callbacks of `inner` run all the same, and its loops must end.

    After `max_in_a_row` spikes without a usual step between them, the level has changed: the next spikes go to
    `inner`, clipped at c, and the limits learn from them, until a step is no spike.

    Args:
      inner: the optimizer, with the rules before it: `skip_spikes(optax.chain(clip, adam))`.
      limit: the Limit of the norm, or a number. By default `limits.running_mean(3.0, decay=0.9, warmup=7)`, three times
        the running mean, which skips from the eighth norm on: docs/guards.md compares it with others on real trainings.
      value_limit: the Limit of the loss, or a number, such as 50.0 or -5.0. It must work for negative losses too:
        `limits.deviation`, `limits.autoclip`, `limits.zclip`, or one of your own with `signed=True`. By
        default mean + 6 max(standard deviation, 0.01 |mean|) + 0.005, of the latest 128 losses, once there are 8.
        `False` ignores the loss, even one that is not finite.
      max_in_a_row: number of spikes in a row that are skipped, at least 1.
      learn: what the limits learn from: "good" steps alone, or "all" steps. OLMo-core's rule is learn="all" with
        `limits.deviation(6.0, learn="raw", warmup=64)`. A quantile needs "all", such as
        `limits.autoclip(99.0, include_current=False, warmup=100)`: the quantile of good steps alone would skip one
        step in a hundred, and then one in a hundred of the rest.
      clip: the Limit that the gradient of a step that is not skipped is clipped at, or a number; None for none. It
        learns from the steps that are not skipped. The norm is the one that is judged, so that it costs no pass over
        the gradients, as a rule in `inner` would.
      mask: which leaves count: a pytree of booleans that is a prefix of the parameters, or a function of the gradients
        that returns one; None for all. Leaves with False, such as frozen ones, do not count in the norm, and may hold
        NaN. `inner` is given them too, with 0 in place of each element that is not finite.

    Returns:
      A GradientTransformation with a `SpikeState`. Its `update` takes the loss as `value=`, a real scalar. Without
      it, as in Flax's `TrainState.apply_gradients`, only the norm is judged. It warns of a `loss=` without a `value=`.

    Raises:
      TypeError: if an argument has the wrong type, or the loss is no real scalar.
      ValueError: if `limit` or `clip` is negative or NaN, `max_in_a_row` is below 1, `learn` is unknown, or
        `value_limit` is NaN or only for norms. In `update`: if the loss differs from device to device, or the mask is
        no prefix of the gradients, or hides all.

    Example:
      >>> import jax.numpy as jnp, novoclip, optax
      >>> limit = novoclip.limits.deviation(6.0, warmup=2)
      >>> optimizer = skip_spikes(optax.sgd(0.1), limit)
      >>> state = optimizer.init(jnp.zeros(1))
      >>> for gradient in (1.0, 1.5, 100.0, jnp.nan, 1.0):
      ...     updates, state = optimizer.update(jnp.array([gradient]), state, value=2.0)
      ...     print(updates)
      [-0.1]
      [-0.15]
      [0.]
      [0.]
      [-0.1]

    References:
      OLMo Team, `2 OLMo 2 Furious <https://arxiv.org/abs/2501.00656>`_, 2024 (`SkipStepAdamW`).

    Under `pmap`, and inside `shard_map`, all devices must be given the same gradients and the same loss: average
    them first. With `optax.MultiSteps`, guard the whole: `skip_spikes(MultiSteps(...))`.

    In OLMo-core spikes enter the window (`learn="all"`), so that the next one passes. axlearn keeps them
    out as we do, but may then skip forever. If a run alternates between two levels, every step on the higher
    one is skipped.
    """
    rule = checked_inner(inner)
    default = limits.running_mean(3.0, decay=0.9, warmup=7)
    bound, value_bound = checked_limit("limit", default if limit is None else limit), checked_value_limit(value_limit)
    clip_bound = None if clip is None else checked_limit("clip", clip)
    check_integer("max_in_a_row", max_in_a_row, low=1)
    check_choice("learn", learn, LEARN)
    tree, advance = resolve_measure("tree"), update_of_finite(rule)
    judge_norm = freeze_nonfinite(bound, elementwise=False)
    judge_value = None if value_bound is None else freeze_nonfinite(value_bound, elementwise=False, floor=None)
    judge_clip = None if clip_bound is None else freeze_nonfinite(clip_bound, elementwise=False)
    origin = made_by(_name(bound, value_bound, clip_bound))

    def init(params: optax.Params) -> SpikeState:
        show(params, mask)  # raises if the mask does not fit
        norm = norm_shapes(tree, jax.tree.map(lambda leaf: leaf if is_measured(leaf) else None, params))
        return start_state(
            params,
            norm,
            judge_norm.init(norm),
            None if judge_value is None else judge_value.init(norm),
            None if judge_clip is None else judge_clip.init(norm),
            rule.init(params),
            origin,
        )

    def update(
        updates: optax.Updates, state: SpikeState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, SpikeState]:
        check_origin(state, SpikeState, origin)
        shown = show(updates, mask)
        reject_integers(shown.leaves)
        norm = tree.norms(shown.leaves)
        value = None if judge_value is None else scalar_loss(loss_of(extra), state.norm.dtype)
        finite = jnp.isfinite(norm.astype(state.norm.dtype))
        if value is not None:
            finite = finite & jnp.isfinite(value)
        at_step = extra | {"step": state.steps}
        norm_limit, norm_limit_state = judge_norm.update(norm, state.norm_limit_state, None, **at_step)
        rounding = rounding_of(shown.leaves, norm)
        spike = norm_spike = finite & is_beyond(norm, norm_limit, rounding)
        value_spike = jnp.zeros((), bool)
        new_value_limit, value_limit_state = state.value_limit, state.value_limit_state
        if judge_value is not None and value is not None:
            new_value_limit, value_limit_state = judge_value.update(
                never_zero(value), value_limit_state, None, **at_step
            )
            value_spike = finite & (value > new_value_limit)
            spike = norm_spike | value_spike
        released = spike & (state.spikes_in_a_row >= max_in_a_row)
        taken = finite & (~spike | released)
        learned = (finite if learn == "all" else taken) & ~(jnp.isnan(norm_limit) | jnp.isnan(new_value_limit))
        held = jnp.where(released, jnp.minimum(norm, norm_limit), norm)
        clipping: dict[str, Any] = {}
        if judge_clip is not None:
            clip_limit, clip_state = judge_clip.update(norm, state.clip_limit_state, None, **at_step)
            beyond = taken & is_beyond(held, clip_limit, rounding)
            held = jnp.where(beyond, clip_limit, held)
            clipping = {
                "clip_limit": jnp.where(finite, limits_as(clip_limit, state.limit.dtype), state.clip_limit),
                "clip_limit_state": select_blocks(learned, clip_state, state.clip_limit_state),
                "clipped": safe_increment(state.clipped, beyond),
            }
        entering = shown.complete(tree.rescale(shown.leaves, norm, jnp.where(taken, held, 0)))
        sent, inner_state = apply_if(
            taken,
            lambda leaves: advance(leaves, state.inner, params, **extra),
            entering,
            updates,
            state.inner,
            finite=True,
        )
        bad = in_place(_bad_leaves(shown.leaves, ~taken), shown.leaves, updates, params, state.leaf_steps)
        steps = safe_increment(state.steps, jnp.array(True))
        leaf_steps, leaf_last = advance_leaf_counts(state.leaf_steps, state.leaf_last, bad, steps)
        return sent, SpikeState(
            steps=steps,
            skipped=safe_increment(state.skipped, ~taken),
            nonfinite=safe_increment(state.nonfinite, ~finite),
            released=safe_increment(state.released, released),
            spikes_in_a_row=jnp.where(finite & ~spike, 0, safe_increment(state.spikes_in_a_row, spike)),
            norm=norm.astype(state.norm.dtype),
            limit=jnp.where(finite, limits_as(norm_limit, state.limit.dtype), state.limit),
            value_limit=jnp.where(finite, new_value_limit, state.value_limit),
            norm_limit_state=select_blocks(learned, norm_limit_state, state.norm_limit_state),
            value_limit_state=select_blocks(learned, value_limit_state, state.value_limit_state),
            inner=inner_state,
            leaf_steps=leaf_steps,
            leaf_last=leaf_last,
            skipped_in_a_row=count_in_a_row(state.skipped_in_a_row, ~taken),
            origin=state.origin,
            norm_spikes=count(state.norm_spikes, norm_spike),
            value_spikes=count(state.value_spikes, value_spike),
            **clipping,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def checked_limit(name: str, limit: Any) -> Limit:
    """Return the Limit of the norm that an argument stands for, or raise an error that names the argument."""
    if isinstance(limit, numbers.Real) and not isinstance(limit, bool):
        return limits.constant(float(limit), name=name)
    if not isinstance(limit, Limit) or limit.needs_params:
        msg = f"{name} must be a number, or a Limit that needs no parameters; got {limit!r}"
        raise TypeError(msg)
    return limit


def _name(bound: Limit, value_bound: Limit | None, clip_bound: Limit | None) -> str:
    clip = f", clip={clip_bound.name}" if clip_bound else ""
    return f"skip_spikes(limit={bound.name}, value_limit={value_bound.name if value_bound else False}{clip})"


def _bad_leaves(tree: optax.Updates, skipped: jax.Array) -> jax.Array:
    """Return which leaves of a step that is skipped are not finite."""
    leaves = [leaf for _, leaf in named_leaves(tree)]
    none = jnp.zeros(len(leaves), bool)
    return if_needed(skipped, lambda *given: ~finite_leaves(with_numbers(tree, given)), lambda *_: none, *leaves)
