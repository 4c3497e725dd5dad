"""Error feedback: what clipping removes is added back in later steps."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.counting import count_in_a_row, safe_increment
from novoclip.granularity import resolve_measure
from novoclip.leaves import is_measured, narrow, reject_integers
from novoclip.mesh import shapes_of, zeros_like
from novoclip.origin import check_origin, made_by
from novoclip.wrappers.inner import checked_inner, wide_dtype


class CarryState(NamedTuple):
    """The state of `uclip` and `clip21`.

    Attributes:
      steps: int32, steps taken.
      nonfinite: int32, how many of them were skipped because a gradient was not finite.
      carry: a pytree like the parameters, in at least float32: what clipping has removed so far, or, for `clip21`,
        the estimate of the gradient.
      inner: the state of the rule.
      origin: which of the two made the state; it holds no array.
      nonfinite_in_a_row: int32, how many of the latest steps in a row were skipped; `()` in a state saved by 0.1.0.
    """

    steps: jax.Array
    nonfinite: jax.Array
    carry: Any
    inner: Any
    origin: Any = ()
    nonfinite_in_a_row: Any = ()


def uclip(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Clip, and add what was removed to the next gradient: error feedback (U-Clip).

    u_t = rule(g_t + carry_{t-1});  carry_t = g_t + carry_{t-1} - u_t. The sum of the gradients is the
    sum of the updates plus the carry, so that clipping has no bias in the long run. An outlier returns in portions over
    later steps: use it for bounded noise, not for spikes.

    Args:
      inner: any clipping rule.

    Returns:
      A GradientTransformation with a `CarryState`. A step is skipped if the norm of gradient plus carry is not
      finite: its updates are 0, and only the counters change.

    Raises:
      TypeError: if `inner` is not a GradientTransformation.

    Example:
      >>> import jax.numpy as jnp, novoclip
      >>> rule = uclip(novoclip.clip_by_value(1.0))
      >>> state = rule.init(jnp.zeros(1))
      >>> for gradient in (2.5, 0.0, 0.0):
      ...     updates, state = rule.update(jnp.array([gradient]), state)
      ...     print(updates)
      [1.]
      [1.]
      [0.5]

    References:
      Elesedy, Hutter, `U-Clip: On-average unbiased stochastic gradient clipping
      <https://arxiv.org/abs/2302.02971>`_, 2023.
    """

    def step(gradients: Any, carry: Any, rule: Any) -> tuple[Any, Any, Any, Any]:
        total = jax.tree.map(_sum, gradients, carry)
        updates, state = rule(total)
        return total, updates, lambda sent: jax.tree.map(_difference, total, sent), state

    return _with_carry(inner, step, "uclip")


def clip21(
    inner: optax.GradientTransformation, *, axis_name: str | None = None
) -> optax.GradientTransformationExtraArgs:
    """Track the gradient by clipped differences (Clip21, EF21 with clipping).

    e_t = e_{t-1} + rule(g_t - e_{t-1});  u_t = e_t, averaged over the workers. Clipped differences go to 0
    where clipped gradients do not: workers whose gradients cancel out find the same optimum as without clipping.

    Args:
      inner: any clipping rule.
      axis_name: the mapped axis over which workers average, as in `jax.pmap`; None for one worker.

    Returns:
      A GradientTransformation with a `CarryState`. A step is skipped if a gradient of any worker is not finite.

    Raises:
      TypeError: if `inner` is not a GradientTransformation.

    Example:
      >>> import jax.numpy as jnp, novoclip
      >>> rule = clip21(novoclip.clip_by_value(1.0))
      >>> state = rule.init(jnp.zeros(1))
      >>> for gradient in (2.5, 2.5, 2.5):
      ...     updates, state = rule.update(jnp.array([gradient]), state)
      ...     print(updates)
      [1.]
      [2.]
      [2.5]

    References:
      Khirirat et al., `Clip21: Error feedback for gradient clipping
      <https://arxiv.org/abs/2305.18929>`_, 2023.
    """

    def step(gradients: Any, estimate: Any, rule: Any) -> tuple[Any, Any, Any, Any]:
        ahead = jax.tree.map(_difference, gradients, estimate)
        moved, state = rule(ahead)
        estimate = jax.tree.map(_sum, estimate, moved)
        sent = estimate if axis_name is None else jax.lax.pmean(estimate, axis_name)
        return ahead, sent, lambda _: estimate, state

    return _with_carry(inner, step, "clip21", axis_name)


def _with_carry(
    inner: Any, step: Any, name: str, axis_name: str | None = None
) -> optax.GradientTransformationExtraArgs:
    rule, pytree, origin = checked_inner(inner), resolve_measure("tree"), made_by(name)

    def init(params: optax.Params) -> CarryState:
        shapes = shapes_of(functools.partial(jax.tree.map, _widened), params)
        carry = jax.tree.map(zeros_like, shapes)
        zero = functools.partial(jnp.zeros, (), jnp.int32)
        return CarryState(zero(), zero(), carry, rule.init(params), origin, zero())

    def update(
        updates: optax.Updates, state: CarryState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, CarryState]:
        reject_integers(updates)
        check_origin(state, CarryState, origin)
        entering, sent, carry_of, inner_state = step(
            jax.tree.map(_widened, updates), state.carry, lambda tree: rule.update(tree, state.inner, params, **extra)
        )
        # The sum of finite gradients, or its norm, may overflow. If it were kept, every later step would be skipped.
        finite = jnp.isfinite(pytree.norms(entering))
        if axis_name is not None:
            finite = jax.lax.pmin(finite.astype(jnp.int32), axis_name) > 0
        leaves = iter(jax.tree.leaves(sent))
        # The carry is computed from the updates as they are returned, rounded to the gradients' dtypes.
        sent = jax.tree.map(
            lambda x: narrow(jnp.where(finite, next(leaves), 0), jnp.result_type(x)) if is_measured(x) else x, updates
        )
        carry = carry_of(jax.tree.map(_widened, sent))
        carry, inner_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new if new.dtype == old.dtype else new.astype(old.dtype), old),
            (carry, inner_state),
            (state.carry, state.inner),
        )
        steps, nonfinite = safe_increment(state.steps, jnp.array(True)), safe_increment(state.nonfinite, ~finite)
        in_a_row = count_in_a_row(state.nonfinite_in_a_row, ~finite)
        return sent, CarryState(steps, nonfinite, carry, inner_state, state.origin, in_a_row)

    return optax.GradientTransformationExtraArgs(init, update)


def _sum(one: jax.Array, other: jax.Array) -> jax.Array:
    if one.shape != other.shape:
        msg = f"gradients must have the shapes of the parameters given to init; got {one.shape}, expected {other.shape}"
        raise ValueError(msg)
    # Gradients may be wider than the parameters that the carry was made for.
    dtype = max((one.dtype, other.dtype), key=lambda kind: jnp.finfo(kind).bits)
    return one.astype(dtype) + other.astype(dtype)


def _difference(one: jax.Array, other: jax.Array) -> jax.Array:
    return _sum(one, -other)


def _widened(leaf: Any) -> Any:
    return jnp.asarray(leaf).astype(wide_dtype(jnp.result_type(leaf))) if is_measured(leaf) else None
