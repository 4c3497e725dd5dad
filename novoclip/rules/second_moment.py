"""Limits that adapt to the second moment of each number."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import Schedulable, check_choice, check_flag, check_number, rate_at, value_at
from novoclip.clip_state import ClipState, advance_element_counts, start_counts
from novoclip.clipping import NONFINITE, clip, judging, new_norm
from novoclip.granularity import resolve_fixed
from novoclip.limits import Limit, make_limit, select_blocks
from novoclip.masks import masked
from novoclip.measure import ELEMENTS, Measure
from novoclip.mesh import broadcast_like
from novoclip.ranges import limits_as, no_limit
from novoclip.safe_math import hypotenuse, wide_ratio
from novoclip.shapes import SHAPES

FORMS = ("inverse", "proportional")


class SecondMomentState(NamedTuple):
    """What `second_moment` remembers.

    Attributes:
      root: `(*blocks)`, sqrt(v). The root, because v itself overflows at norms that can be
        represented: one gradient of 1e20 would leave v infinite for good.
      seen: int32 `(*blocks)`, norms other than 0 that it learned from; `()` for "inverse".
    """

    root: jax.Array
    seen: Any


def second_moment(threshold: Schedulable, *, b2: Schedulable = 0.999, form: str = "inverse") -> Limit:
    """Limit each block by the running mean v of its squared norm.

        v_t = b2 v_{t-1} + (1 - b2) n_t^2, v_0 = 0;  c_t = threshold / sqrt(v_t)         "inverse"
        c_t = threshold sqrt(v_{t-1});  v_t = v_{t-1} + r (min(n_t, c_t)^2 - v_{t-1})    "proportional"

    The limit is infinite where v is 0. In the proportional form r = max(1 - b2, 1 / t), a plain
    mean at first, and norms of 0 are passed over: t counts the others.

    Args:
      threshold: for "inverse" at least 0, in squared gradient units; for "proportional" a
        number of deviations, at least 1. A float, an array or a schedule.
      b2: decay of v in [0, 1]: a float, an array or a schedule.
      form: one of the two above.

    Returns:
      A Limit with a `SecondMomentState`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or `form` is unknown.

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
    # Below 1 the limit would fall at every step, towards 0.
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
        # Without the plain mean at first, one tiny gradient would hold the limits down for thousands of steps.
        seen = state.seen + (state.seen < jnp.iinfo(jnp.int32).max).astype(jnp.int32)
        root = learn(jnp.minimum(norms, limits), jnp.maximum(rate, 1 / seen.astype(rate.dtype)))
        return limits, select_blocks(norms > 0, SecondMomentState(root, seen), state)

    return make_limit(init, update, name=f"second_moment(form={form!r})")


def clip_by_second_moment(
    threshold: Schedulable,
    b2: Schedulable = 0.999,
    *,
    per: str | Measure = "element",
    form: str = "inverse",
    shape: str = "hard",
    nonfinite: str = "zero",
    count: bool = False,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Clip each number to a limit that adapts to the second moment v.

    u = sign(g) min(|g|, c_t) with

        v_t = b2 v_{t-1} + (1 - b2) g_t^2, v_0 = 0;  c_t = threshold / sqrt(v_t)     "inverse"
        c_t = threshold sqrt(v_{t-1});  v_t = v_{t-1} + r (u_t^2 - v_{t-1})          "proportional"

    and no limit where v is 0. In the inverse form a number is clipped when |g| sqrt(v) exceeds
    the threshold: it depends on the scale of the gradients, and v takes in a spike whole.
    The proportional form depends on no scale and keeps spikes out of v. Its rate r is
    max(1 - b2, 1 / t), a plain mean at first, and zeros are passed over: t counts the others.

    Args:
      threshold: at least 0, in squared gradient units ("inverse"), or at least 1, in
        deviations ("proportional"): a float, an array or a schedule.
      b2: decay of v in [0, 1]: a float, an array or a schedule.
      per: "element" keeps one v a number; "tensor", "tree", "unit" or a Measure, of which only the
        blocks count, one a block, from the mean of g^2. Either way, numbers are clipped. In the
        proportional form the latter learns from min(root mean square, c).
      form: "inverse" or "proportional".
      shape: "hard", "tanh", "arctan", "algebraic", "smooth", "normalize" or "drop".
      nonfinite: "zero" sets NaN to 0 (per tensor: a tensor that is not finite to zeros);
        "propagate" passes it on. Neither enters v.
      count: whether to keep `fraction`, `clipped` and `nonfinite` in the state, which
        takes one more pass over the gradients.
      mask: which leaves take part: a pytree of booleans that is a prefix of the parameters, or a function that
        returns one. The others pass unchanged and count for no norm. None for all.

    Returns:
      A GradientTransformation with a `ClipState` whose `limit_state` is a `SecondMomentState`.
      It is kept in float32 (float64 for float64 parameters). Per block, the state's
      `norms` are root mean squares, and its `limits` those of the numbers.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown.

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

    SPAM keeps Adam's own v, starts late, and replaces numbers beyond 71 deviations only.
    """
    limit = second_moment(threshold, b2=b2, form=form)
    check_flag("count", count)
    blocks = resolve_fixed(per, "rms", elements=True)
    if blocks.elementwise:
        return clip(blocks, limit, shape, nonfinite=nonfinite, count=count, mask=mask)
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
