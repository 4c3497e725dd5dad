"""The limit of `clip_by_second_moment`: a function of the second moment of the norms."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from novoclip.arguments import check_choice, check_number, rate_at, value_at
from novoclip.limit import Limit, make_limit, select_blocks
from novoclip.ranges import no_limit
from novoclip.safe_math import hypotenuse, wide_ratio
from novoclip.typing import ScalarOrSchedule

FORMS = ("inverse", "proportional")


class SecondMomentState(NamedTuple):
    """State of `second_moment`.

    Attributes:
      root: `(*blocks)`, sqrt(v). It is the root because v overflows at norms that can be represented: after one
        gradient of 1e20, v would stay infinite.
      seen: int32 `(*blocks)`, number of norms other than 0 so far; `()` for "inverse".
    """

    root: jax.Array
    seen: Any


def second_moment(
    threshold: ScalarOrSchedule, *, b2: ScalarOrSchedule = 0.999, form: Literal["inverse", "proportional"] = "inverse"
) -> Limit:
    """Limit each block by the running mean v of its squared norm.

        v_t = b2 v_{t-1} + (1 - b2) n_t^2, v_0 = 0;  c_t = threshold / sqrt(v_t)         "inverse"
        c_t = threshold sqrt(v_{t-1});  v_t = v_{t-1} + r (min(n_t, c_t)^2 - v_{t-1})    "proportional"

    The limit is infinite where v is 0. In the proportional form, r = max(1 - b2, 1 / t), which is a plain mean at
    first. It ignores norms of 0: t counts the others.

    Args:
      threshold: "inverse": at least 0, in squared gradient units. "proportional": a multiple of sqrt(v), at least 1. A
        float, an array or a schedule.
      b2: decay rate of v, in [0, 1]: a float, an array or a schedule.
      form: "inverse" or "proportional", the formula above.

    Returns:
      A Limit with a `SecondMomentState`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of its range, or `form` is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> limit = second_moment(3.0, form="proportional")
      >>> state = limit.init(jnp.zeros(()))
      >>> for norm in (2.0, 2.0):
      ...     limits, state = limit.update(jnp.array(norm), state, step=jnp.int32(0))
      ...     print(limits)
      inf
      6.0
    """
    check_choice("form", form, FORMS)
    # With a threshold below 1, the limit would decrease towards 0, step by step.
    check_number("threshold", threshold, low=1.0 if form == "proportional" else 0.0)
    check_number("b2", b2, high=1.0)

    def init(norms: Any) -> SecondMomentState:
        seen = jnp.zeros(norms.shape, jnp.int32) if form == "proportional" else ()
        return SecondMomentState(jnp.zeros(norms.shape, norms.dtype), seen)

    def update(
        norms: Any, state: Any, param_norms: Any = None, /, *, step: jax.Array, **extra: Any
    ) -> tuple[Any, SecondMomentState]:
        del param_norms, extra
        scale, rate = value_at(threshold, step, norms, "threshold"), rate_at(b2, step, norms, "b2")
        before = state.root

        def learn(size: jax.Array, rate: jax.Array) -> jax.Array:
            return hypotenuse(jnp.sqrt(1 - rate) * before, jnp.sqrt(rate) * size)

        if form == "inverse":
            root = learn(norms, rate)
            limits = wide_ratio(scale, jnp.where(root > 0, root, 1))
            return jnp.where(root > 0, limits, no_limit(norms.dtype)), SecondMomentState(root, ())
        limits = jnp.where(state.seen > 0, scale * before, no_limit(norms.dtype))
        # Without the plain mean at first, one tiny gradient would keep the limit small for thousands of steps.
        seen = state.seen + (state.seen < jnp.iinfo(jnp.int32).max).astype(jnp.int32)
        root = learn(jnp.minimum(norms, limits), jnp.maximum(rate, 1 / seen.astype(rate.dtype)))
        return limits, select_blocks(norms > 0, SecondMomentState(root, seen), state)

    return make_limit(init, update, name=f"second_moment(form={form!r})")
