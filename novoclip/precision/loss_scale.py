"""The scale of a float16 loss: gradients are unscaled, steps that overflow are skipped, and the scale adapts."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import check_flag, check_integer, check_number
from novoclip.counting import safe_increment
from novoclip.guards.taken import apply_if
from novoclip.leaves import finite_leaves, is_measured, narrow, reject_integers
from novoclip.origin import check_origin, made_by
from novoclip.precision.master_weights import MasterWeightsState
from novoclip.precision.stochastic import StochasticRoundingState
from novoclip.transforms import update_of_finite
from novoclip.wrappers.inner import checked_inner, wide_dtype


class LossScaleState(NamedTuple):
    """The state of `loss_scaling`.

    Attributes:
      scale: float32, by which the next loss is to be multiplied; see `scale_of`.
      growth_steps: int32, steps taken since the scale last changed.
      steps: int32, steps seen.
      skipped: int32, steps whose gradients were not finite, and that were skipped.
      skipped_in_a_row: int32, how many of the latest steps in a row were skipped.
      inner: the state of the optimizer.
      origin: that `loss_scaling` made the state; it holds no array.
    """

    scale: jax.Array
    growth_steps: jax.Array
    steps: jax.Array
    skipped: jax.Array
    skipped_in_a_row: jax.Array
    inner: Any
    origin: Any = ()


def loss_scaling(
    inner: optax.GradientTransformation,
    scale: float = 2.0**15,
    *,
    dynamic: bool = True,
    growth_interval: int = 2000,
    growth_factor: float = 2.0,
    backoff_factor: float = 0.5,
    min_scale: float = 1.0,
    max_scale: float = 2.0**24,
) -> optax.GradientTransformationExtraArgs:
    """Unscale the gradients of a scaled float16 loss, skip steps that overflow, and adapt the scale.

    Multiply the loss by `scale_of(opt_state)` before it is differentiated. The gradients are divided by the scale in
    float32 before `inner` is given them, so that limits and statistics are those of unscaled gradients. If one is not
    finite, the step is skipped: updates are zero, and the state of `inner` does not change, so that a guard such as
    `skip_spikes` inside counts no spike. A dynamic scale is then multiplied by `backoff_factor`; after
    `growth_interval` steps in a row without a skip it is multiplied by `growth_factor`.

    The factors and the interval are those of `torch.amp.GradScaler`, whose scale starts at 2^16 and has no bounds.
    `flax.training.dynamic_scale.DynamicScale` grows one step later, at the first step after the interval. Use one of
    the two: gradients of `DynamicScale` are unscaled already. To skip its steps here, call `update` with
    `loss_scale=1.0`.

    float16 parameters need float32 weights: `master_weights(loss_scaling(optimizer))`, in this order. For accumulation
    write `loss_scaling(optax.MultiSteps(optimizer, k))`: inside `MultiSteps`, one overflow stays in its accumulator.

    Args:
      inner: the optimizer, with the rules before it: `loss_scaling(optax.chain(clip, adam))`.
      scale: the scale of the first step, or of all steps if not `dynamic`. Above 0.
      dynamic: whether the scale adapts.
      growth_interval: after how many steps in a row without a skip the scale grows, at least 1.
      growth_factor: what it is multiplied by then, above 1.
      backoff_factor: what it is multiplied by after a skipped step, in (0, 1).
      min_scale: the smallest scale.
      max_scale: the largest scale.

    Returns:
      A GradientTransformation with a `LossScaleState`. Updates have the dtypes of the parameters where these are given,
      else of the gradients. `update` takes `loss_scale`, a number by which the gradients given to it were multiplied,
      in place of that in the state: the state then holds this one, and it adapts no further in that step.

    Raises:
      TypeError: if `inner` is no GradientTransformation, or an argument has the wrong type; if `inner` contains
        `master_weights` or `stochastic_rounding`, which belong outside. In `update`: if a gradient is an integer.
      ValueError: if a number is out of range.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> optimizer = loss_scaling(optax.sgd(1.0), 1024.0)
      >>> params = jnp.zeros(2)
      >>> state = optimizer.init(params)
      >>> for gradient in (jnp.array([2.0, 4.0]), jnp.array([jnp.inf, 4.0])):
      ...     updates, state = optimizer.update(scale_of(state) * gradient, state, params)
      ...     print(updates, scale_of(state))
      [-2. -4.] 1024.0
      [0. 0.] 512.0

    References:
      Micikevicius et al., `Mixed precision training <https://arxiv.org/abs/1710.03740>`_, 2018.
      `torch.amp.GradScaler <https://pytorch.org/docs/stable/amp.html#gradient-scaling>`_.
    """
    rule = checked_inner(inner)
    check_flag("dynamic", dynamic)
    check_integer("growth_interval", growth_interval, low=1)
    _check_scales(scale, min_scale, max_scale, dynamic=dynamic)
    _check_float("growth_factor", growth_factor, low=1.0, exclude_low=True)
    _check_float("backoff_factor", backoff_factor, high=1.0, exclude_low=True, exclude_high=True)
    origin = made_by("loss_scaling")

    def init(params: optax.Params) -> LossScaleState:
        state = rule.init(params)
        _check_inside(state)
        start = jnp.asarray(float(scale), jnp.float32)
        zero = functools.partial(jnp.zeros, (), jnp.int32)
        return LossScaleState(start, zero(), zero(), zero(), zero(), state, origin)

    def update(
        updates: optax.Updates,
        state: LossScaleState,
        params: optax.Params | None = None,
        *,
        loss_scale: Any = None,
        **extra: Any,
    ) -> tuple[optax.Updates, LossScaleState]:
        check_origin(state, LossScaleState, origin)
        reject_integers(updates)
        given = loss_scale is not None
        now = jnp.asarray(loss_scale, jnp.float32).reshape(()) if given else state.scale
        gradients = jax.tree.map(lambda leaf: _unscaled(leaf, now), updates)
        taken = jnp.all(finite_leaves(gradients))
        sent, inner_state = apply_if(
            taken,
            lambda entering: update_of_finite(rule)(entering, state.inner, params, **extra),
            gradients,
            gradients,
            state.inner,
        )
        good = jnp.where(taken, safe_increment(state.growth_steps, taken), 0)
        if given:
            good = jnp.zeros_like(good)
        elif dynamic:
            grows = good >= growth_interval
            factor = jnp.where(taken, jnp.where(grows, float(growth_factor), 1.0), float(backoff_factor))
            now = jnp.where(taken & ~grows, now, jnp.clip(now * factor, float(min_scale), float(max_scale)))
            good = jnp.where(grows, 0, good)
        return _in_dtypes(sent, updates if params is None else params), LossScaleState(
            scale=now,
            growth_steps=good,
            steps=safe_increment(state.steps, jnp.array(True)),
            skipped=safe_increment(state.skipped, ~taken),
            skipped_in_a_row=jnp.where(taken, 0, safe_increment(state.skipped_in_a_row, ~taken)),
            inner=inner_state,
            origin=state.origin,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def scale_of(opt_state: Any) -> jax.Array:
    """Return the scale by which the loss is to be multiplied in the next step.

    Args:
      opt_state: the state of an optimizer with one `loss_scaling` anywhere in it.

    Returns:
      The scale, a float32 scalar.

    Raises:
      ValueError: if there is none, or more than one.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> optimizer = optax.chain(loss_scaling(optax.adam(1e-3), 1024.0))
      >>> print(scale_of(optimizer.init(jnp.zeros(2))))
      1024.0
    """
    found = [node for node in jax.tree.leaves(opt_state, is_leaf=_is_state) if _is_state(node)]
    if len(found) != 1:
        msg = f"opt_state must hold one state of loss_scaling; got {len(found)}: give the state of the optimizer, and "
        msg += "wrap it as loss_scaling(optimizer) once"
        raise ValueError(msg)
    return found[0].scale


def _is_state(node: Any) -> bool:
    return isinstance(node, LossScaleState)


def _check_float(name: str, value: Any, **bounds: Any) -> None:
    if callable(value):
        msg = f"{name} must be a number, not a schedule; got {value!r}"
        raise TypeError(msg)
    check_number(name, value, **bounds)


def _check_scales(scale: Any, least: Any, most: Any, *, dynamic: bool) -> None:
    for name, value in (("scale", scale), ("min_scale", least), ("max_scale", most)):
        _check_float(name, value, exclude_low=True, exclude_high=True)
    if dynamic and not least <= scale <= most:
        msg = f"scale must be between min_scale={least!r} and max_scale={most!r}; got {scale!r}"
        raise ValueError(msg)


def _check_inside(state: Any) -> None:
    outer = (MasterWeightsState, StochasticRoundingState)
    if any(isinstance(node, outer) for node in jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, outer))):
        msg = "inner must not contain master_weights or stochastic_rounding, whose updates are float32: write "
        msg += "master_weights(loss_scaling(optimizer))"
        raise TypeError(msg)


def _unscaled(leaf: Any, scale: jax.Array) -> Any:
    if not is_measured(leaf):
        return leaf
    leaf = jnp.asarray(leaf)
    wide = leaf.astype(wide_dtype(leaf.dtype))
    return wide / scale.astype(jnp.finfo(wide.dtype).dtype).astype(wide.dtype)


def _in_dtypes(updates: optax.Updates, like: Any) -> optax.Updates:
    """Return updates in the dtypes of a pytree whose leaves are at the same places, or more."""
    structure: Any = jax.tree.structure(updates, is_leaf=lambda node: node is None)

    def each(update: Any, leaf: Any) -> Any:
        fits = is_measured(update) and is_measured(leaf)
        return narrow(update, jnp.result_type(leaf)) if fits and update.dtype != jnp.result_type(leaf) else update

    sent = structure.flatten_up_to(updates)
    return structure.unflatten(map(each, sent, structure.flatten_up_to(like)))
