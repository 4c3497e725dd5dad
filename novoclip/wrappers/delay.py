"""A rule that starts after some steps, at once or gradually."""

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
      inner: the state of the rule.
    """

    steps: jax.Array
    inner: Any


def start_after(
    inner: optax.GradientTransformation, steps: int, *, ramp: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Pass gradients on unchanged for some steps, then start to clip, at once or gradually.

    u_t = (1 - a_t) g_t + a_t rule(g_t), where a_t is 0 in the first `steps` steps, and then rises linearly to 1 over
    `ramp` steps. The rule learns from the first step on. Elements that are not finite are replaced by the rule's from
    the first step on: rules set them to zero.

    Args:
      inner: any clipping rule.
      steps: how many steps are not clipped, at least 0.
      ramp: how many steps after those are clipped in part, before the first that is clipped in full, at least 0.

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
      <https://arxiv.org/abs/2502.11034>`_, 2025, for rules that start late.

    A threshold that changes with the step may be written as a schedule instead.
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
        fraction = jnp.clip(begun.astype(jnp.float32) / float(ramp + 1), 0, 1)

        def blend(before: Any, after: Any) -> Any:
            if not is_measured(before):
                return before
            before = jnp.asarray(before)
            wide = wide_dtype(before.dtype)
            mixed = (1 - fraction).astype(wide) * before.astype(wide) + fraction.astype(wide) * after.astype(wide)
            mixed = jnp.where(fraction == 1, after, jnp.where(fraction == 0, before, mixed.astype(before.dtype)))
            return jnp.where(jnp.isfinite(before), mixed, after)

        return jax.tree.map(blend, updates, clipped), DelayedState(
            safe_increment(state.steps, jnp.array(True)), inner_state
        )

    return optax.GradientTransformationExtraArgs(init, update)
