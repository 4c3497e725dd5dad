"""Clip elements at limits that adapt to their second moment."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from novoclip import limits
from novoclip.arguments import check_choice, check_flag
from novoclip.clip_state import ClipState, advance_element_counts, start_counts
from novoclip.clipping import NONFINITE, clip_by_limit, judging, new_norm
from novoclip.granularity import resolve_fixed
from novoclip.masks import masked
from novoclip.measure import ELEMENTS
from novoclip.mesh import broadcast_like
from novoclip.ranges import limits_as, no_limit
from novoclip.shapes import SHAPES
from novoclip.typing import Granularity, Mask, Nonfinite, ScalarOrSchedule, Shape


def clip_by_second_moment(
    threshold: ScalarOrSchedule,
    b2: ScalarOrSchedule = 0.999,
    *,
    per: Granularity = "element",
    form: Literal["inverse", "proportional"] = "inverse",
    shape: Shape = "hard",
    nonfinite: Nonfinite = "zero",
    count: bool = False,
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip each element at a limit that adapts to its second moment v.

    u = sign(g) min(|g|, c_t) with

        v_t = b2 v_{t-1} + (1 - b2) g_t^2, v_0 = 0;  c_t = threshold / sqrt(v_t)     "inverse"
        c_t = threshold sqrt(v_{t-1});  v_t = v_{t-1} + r (u_t^2 - v_{t-1})          "proportional"

    and no limit where v is 0. The inverse form clips an element when |g| sqrt(v) exceeds the threshold. It depends on
    the scale of the gradients, and a spike enters v unclipped. The proportional form does not depend on the scale, and
    a spike enters v clipped. Its rate r is max(1 - b2, 1 / t), which is a plain mean at first. It ignores zeros: t
    counts the other gradients.

    Args:
      threshold: "inverse": at least 0, in squared gradient units. "proportional": a multiple of sqrt(v), at least 1. A
        float, an array or a schedule.
      b2: decay rate of v, in [0, 1]: a float, an array or a schedule.
      per: what has a v of its own. "element" keeps one v per element. "tensor", "tree" (the whole pytree), "unit" (an
        output unit), or a Measure, whose norm is ignored, keeps one v per block, from the mean of g^2. In all cases,
        elements are clipped one by one. Per block, the proportional form learns from min(root mean square, c).
      form: "inverse" or "proportional", the formula above.
      shape: how elements are clipped: "hard" (to at most c), "tanh", "arctan", "algebraic", "smooth" (all elements,
        smoothly to below c), "normalize" (all to c) or "drop" (to 0 beyond c).
      nonfinite: "zero" sets NaN to 0 (per block, a block that is not finite to zeros); "propagate" passes it on.
        Neither enters v.
      count: whether to keep the statistics `fraction`, `clipped` and `nonfinite` in the state, which takes one more
        pass over the gradients.
      mask: which leaves the rule applies to: a pytree of booleans that is a prefix of the parameters, or a function
        that takes the parameters or gradients and returns one. The others pass unchanged and do not count in the norm.
        None for all.

    Returns:
      A GradientTransformation with a `ClipState` whose `limit_state` is a `SecondMomentState`, in float32 (float64 for
      float64 parameters). Per block, the `norms` in the state are root mean squares, and its `limits` are those of the
      elements.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an argument is out of its range, or a string is not one of those listed.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = clip_by_second_moment(3.0, form="proportional")
      >>> state = rule.init(jnp.zeros(2))
      >>> for gradient in ([1.0, 0.1], [1.0, 100.0]):
      ...     updates, state = rule.update(jnp.array(gradient), state)
      >>> print(updates)
      [1.  0.3]

    References:
      Huang et al., `SPAM: Spike-aware Adam with momentum reset for stable LLM training
      <https://arxiv.org/abs/2501.06842>`_, 2025, for limits from the v of before. Ginsburg et
      al., `Training deep networks with stochastic gradient normalized by layerwise adaptive
      second moments <https://arxiv.org/abs/1905.11286>`_, 2019, for v per tensor.

    SPAM uses the v of Adam itself, starts after a delay, and only replaces elements beyond 71 sqrt(v).
    """
    limit = limits.second_moment(threshold, b2=b2, form=form)
    check_flag("count", count)
    blocks = resolve_fixed(per, "rms", elements=True)
    if blocks.elementwise:
        return clip_by_limit(blocks, limit, shape, nonfinite=nonfinite, count=count, mask=mask)
    check_choice("shape", shape, tuple(SHAPES))
    check_choice("nonfinite", nonfinite, NONFINITE)
    start, judge = judging(blocks, limit, counting=False, elsewhere=bool(count))

    def init(params: optax.Params) -> ClipState:
        state = start(params)
        return start_counts(state) if count else state

    def update(
        updates: optax.Updates, state: ClipState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, ClipState]:
        norms, bounds, _, state = judge(updates, state, params, extra)
        finite = jax.tree.map(jnp.isfinite, norms)
        bounds = jax.tree.map(
            lambda c, ok: jnp.where(ok, c, 0 if nonfinite == "zero" else no_limit(c.dtype)), bounds, finite
        )
        sizes = ELEMENTS.norms(updates)
        spread = [blocks.spread(values, sizes) for values in (bounds, finite)]
        limits, usable = (jax.tree.map(broadcast_like, values, sizes) for values in spread)
        limits = jax.tree.map(lambda c, n: limits_as(c, n.dtype), limits, sizes)
        new = jax.tree.map(lambda n, c: new_norm(n, c, shape, nonfinite, elementwise=True), sizes, limits)
        if count:
            known = jax.tree.map(lambda n, ok: jnp.where(ok, n, jnp.nan), sizes, usable)
            state = advance_element_counts(state, known, limits)
        return ELEMENTS.rescale(updates, sizes, new), state

    return masked(optax.GradientTransformationExtraArgs(init, update), mask)
