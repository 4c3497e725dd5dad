"""A rule that begins late, or little by little."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import check_integer
from novoclip.counting import safe_increment
from novoclip.leaves import is_measured
from novoclip.wrappers.inner import checked_inner, wide_dtype


class DelayedState(NamedTuple):
    """The state of `start_after`.

    Attributes:
      steps: int32, steps taken.
      inner: the rule's own.
    """

    steps: jax.Array
    inner: Any


def start_after(
    inner: optax.GradientTransformation, steps: int, *, ramp: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Pass gradients on for some steps, then begin to clip, at once or little by little.

    u_t = (1 - a_t) g_t + a_t rule(g_t), with a_t = 0 in the first `steps` steps, then rising
    linearly to 1 over `ramp` steps. The rule learns from the first step on. Numbers
    that are not finite come from the rule from the first step on, which sets them to zero.

    Args:
      inner: any rule.
      steps: how many steps pass unclipped, at least 0.
      ramp: how many steps lie between those and the first that is clipped in full, at least 0.

    Returns:
      A GradientTransformation with a `DelayedState`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is negative.

    Example:
      >>> import jax.numpy as jnp, novoclip
      >>> rule = start_after(novoclip.clip_by_value(1.0), 1, ramp=1)
      >>> state = rule.init(jnp.zeros(1))
      >>> for gradient in (3.0, 3.0, 3.0):
      ...     updates, state = rule.update(jnp.array([gradient]), state)
      ...     print(updates)
      [3.]
      [2.]
      [1.]

    References:
      Wang et al., `AdaGC: Improving training stability for large language model pretraining
      <https://arxiv.org/abs/2502.11034>`_, 2025, for rules that begin late. Thresholds may also
      be schedules.
    """
    rule = checked_inner(inner)
    check_integer("steps", steps, low=0)
    check_integer("ramp", ramp, low=0)

    def init(params: optax.Params) -> DelayedState:
        return DelayedState(jnp.zeros((), jnp.int32), rule.init(params))

    def update(
        updates: optax.Updates, state: DelayedState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, DelayedState]:
        if not isinstance(state, DelayedState):
            msg = f"start_after needs a state of type DelayedState; got {type(state).__name__}: call init again"
            raise ValueError(msg)
        clipped, inner_state = rule.update(updates, state.inner, params, **extra)
        begun = state.steps - min(steps, jnp.iinfo(jnp.int32).max) + 1
        share = jnp.clip(begun.astype(jnp.float32) / float(ramp + 1), 0, 1)

        def blend(before: Any, after: Any) -> Any:
            if not is_measured(before):
                return before
            before = jnp.asarray(before)
            wide = wide_dtype(before.dtype)
            mixed = (1 - share).astype(wide) * before.astype(wide) + share.astype(wide) * after.astype(wide)
            mixed = jnp.where(share == 1, after, jnp.where(share == 0, before, mixed.astype(before.dtype)))
            return jnp.where(jnp.isfinite(before), mixed, after)

        return jax.tree.map(blend, updates, clipped), DelayedState(
            safe_increment(state.steps, jnp.array(True)), inner_state
        )

    return optax.GradientTransformationExtraArgs(init, update)
