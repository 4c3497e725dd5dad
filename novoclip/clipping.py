"""clip(measure, limit, shape): the three answers that make a clipping rule."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import check_choice, check_flag
from novoclip.blocks import block_norms
from novoclip.clip_state import (
    ClipState,
    advance_blocks,
    advance_element_counts,
    check_counts,
    norms_shown,
    start_counts,
    start_norms,
)
from novoclip.counting import safe_increment
from novoclip.granularity import PER, resolve_measure
from novoclip.layout import Layout
from novoclip.learning import freeze_nonfinite
from novoclip.leaves import is_measured, reject_integers
from novoclip.limits import Limit, name_of
from novoclip.masks import masked, with_gradients
from novoclip.measure import ALL, Measure, norm_shapes
from novoclip.origin import check_origin, made_by
from novoclip.per_element import check_history, over_leaves
from novoclip.platforms import kept_apart
from novoclip.rounding import is_beyond, rounded_like, rounding_of
from novoclip.shapes import CUTS, SHAPES
from novoclip.slices import Slices

NONFINITE = ("zero", "propagate")


def clip(
    measure: str | Measure,
    limit: Limit | None = None,
    shape: str = "hard",
    *,
    nonfinite: str = "zero",
    count: bool | None = None,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Make a clipping rule of three independent answers.

    Each block of the gradient, of norm n, is multiplied by shape(n, c) / n, where c is
    its limit at this step.

    Args:
      measure: how large each block is: "tree", "tensor", "unit" or "element" (Euclidean
        norms), or a Measure, such as `resolve_measure("tensor", "l1")` or `groups(...)`.
      limit: how large each block may be: `constant(1.0)`, or one that learns from the norms. Schedules count
        every update.
      shape: what becomes of a block that is larger: "hard" (n becomes c), "tanh", "arctan",
        "algebraic" and "smooth" (n approaches c; n / (1 + n / c) the slowest), "normalize" (n becomes c for smaller
        blocks too), "drop" (n becomes 0).
      nonfinite: "zero" sets a block whose norm is not finite (or whose limit is NaN, which
        a schedule may return) to zero and leaves that block's state as it was; "propagate"
        passes the block on, and does not learn from it. Per element, an infinity is
        clipped like any large number (and counts as not finite where there is no limit).
      count: whether to keep `fraction`, `clipped` and `nonfinite`: by default yes, except per
        element, where it takes one more pass over the gradients.
      mask: which leaves take part: a pytree of booleans that is a prefix of the parameters, or a function of
        the gradients that returns one. The others pass unchanged, and count for no norm. None for all.

    Returns:
      An `optax.GradientTransformationExtraArgs` with a `ClipState`.

    Raises:
      TypeError: if `measure` is neither a string nor a Measure, or `limit` no Limit.
      ValueError: if a name is unknown. In `init` and `update`: if the Limit needs
        parameters and they are absent, the number of blocks (per unit, of leaves) differs from that in
        `init`, the state is that of another rule, or `mask` selects no leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> from novoclip import constant
      >>> rule = clip("tensor", constant(1.0))
      >>> gradients = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.5])}
      >>> updates, state = rule.update(gradients, rule.init(gradients))
      >>> print(updates["a"], updates["b"], state.norms)
      [0.6 0.8] [0.5] [5.  0.5]
    """
    limit = _checked_limit(measure, limit)
    check_choice("shape", shape, tuple(SHAPES))
    check_choice("nonfinite", nonfinite, NONFINITE)
    check_flag("count", count)
    measure = resolve_measure(measure)
    counting = not measure.elementwise if count is None else count
    init, judge = judging(measure, limit, counting=counting)
    target = functools.partial(new_norm, shape=shape, nonfinite=nonfinite, elementwise=measure.elementwise)

    def update(
        updates: optax.Updates, state: ClipState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, ClipState]:
        judged = judge(updates, state, params, extra)
        norms = judged.norms
        if counting and measure.elementwise:
            # Otherwise absolute values are computed once for counting and clipping, and written out.
            updates = jax.tree.map(lambda x: kept_apart(x) if is_measured(x) else x, updates)
            norms = measure.norms(updates)
        new = jax.tree.map(lambda n, c, r: target(n, c, rounding=r), norms, judged.limits, judged.roundings)
        rescaled = measure.rescale(updates, norms, new)
        return rescaled, judged.state

    if getattr(measure.norms, ALL, False):
        update.__dict__[ALL] = True
    return masked(optax.GradientTransformationExtraArgs(init, update), mask)


def sees_all(rule: Any) -> bool:
    """Whether the state of a rule shows norms of all numbers: if one of these is not finite, a norm is not.

    The function says it, and not the rule, nor the Measure, whose other fields may be replaced.
    """
    return getattr(getattr(rule, "update", None), ALL, False)


class Judged(NamedTuple):
    """Norms and their limits at a step; `roundings` says by how much a norm may be above its limit, relatively."""

    norms: Any
    limits: Any
    roundings: Any
    state: ClipState


def judging(measure: Measure, limit: Limit, *, counting: bool, elsewhere: bool = False) -> tuple[Any, Any]:
    """Return two functions, `init(params)` and `judge(updates, state, params, extra)`, which gives what is Judged.

    Args:
      measure: the blocks.
      limit: their limits.
      counting: whether `judge` counts what is beyond them.
      elsewhere: whether the caller counts, in the same state.
    """
    elements = measure.elementwise
    advance = over_leaves(freeze_nonfinite(limit, elementwise=elements), measure)
    origin = made_by(f"{name_of(limit)} per {measure.name}")

    def init(params: optax.Params) -> ClipState:
        norms = norm_shapes(measure, params)
        check_history(limit, norms, params, measure)
        steps, limit_state = jnp.zeros((), jnp.int32), advance.init(norms)
        state = ClipState(steps, (), (), (), (), (), limit_state, origin)
        state = state if elements else start_norms(state, norms)
        return start_counts(state) if counting else state

    def judge(updates: optax.Updates, state: ClipState, params: optax.Params | None, extra: dict[str, Any]) -> Judged:
        reject_integers(updates)
        check_origin(state, ClipState, origin)
        check_counts(state, counting=counting or elsewhere)
        params = with_gradients(params, updates) if limit.needs_params else None
        norms = measure.norms(updates)
        if not elements:
            _check_blocks(norms, state.norms)
        sizes = _sizes(measure, params, norms) if limit.needs_params else None
        known = extra | {"step": state.steps}
        if limit.needs_total and isinstance(norms, Slices):
            known["total"] = _total(norms)
        limits, limit_state = advance.update(norms, state.limit_state, sizes, **known)
        state = state._replace(steps=safe_increment(state.steps, jnp.array(True)), limit_state=limit_state)
        if elements:
            limits = rounded_like(limits, updates)
            counted = advance_element_counts(state, norms, limits) if counting else state
            return Judged(norms, limits, jax.tree.map(lambda _: 0.0, norms), counted)
        roundings = rounding_of(updates, norms, measure.rounding)
        state = advance_blocks(state, norms, limits, roundings, counting=counting)
        return Judged(norms, limits, roundings, state)

    return init, judge


def _total(norms: Slices) -> jax.Array:
    """Return the Euclidean norm of the norms that are finite."""
    finite = [jnp.where(jnp.isfinite(norm), norm, 0) for norm in norms.arrays]
    axes = tuple(tuple(range(norm.ndim)) for norm in finite)
    return block_norms(finite, Layout((0,) * len(axes), axes, "scalar", over=((),) * len(axes)), "l2")


def new_norm(
    norm: jax.Array, limit: jax.Array, shape: str, nonfinite: str, *, elementwise: bool, rounding: float | None = None
) -> jax.Array:
    """Return the norm that a block gets: shape(norm, limit), or what `nonfinite` says."""
    # Infinite numbers are clipped like large ones; an infinite norm has no direction left.
    known = (~jnp.isnan(norm) if elementwise else jnp.isfinite(norm)) & ~jnp.isnan(limit)
    norm_or_1 = jnp.where(known, norm, 1)
    new = SHAPES[shape](norm_or_1, limit)
    if shape in CUTS and not elementwise:
        new = jnp.where(is_beyond(norm_or_1, limit, rounding), new, norm_or_1)
    if nonfinite == "zero":
        return jnp.where(known & jnp.isfinite(new), new, 0)
    return jnp.where(known, new, norm)


def _checked_limit(measure: Any, limit: Any) -> Limit:
    if not isinstance(measure, str | Measure):
        msg = (
            f"measure must be a Measure or one of {', '.join(PER)}; got {measure!r}. "
            "To clip at a number use clip_by_value, clip_by_norm or clip_by_global_norm"
        )
        raise TypeError(msg)
    if not isinstance(limit, Limit):
        msg = f"limit must be a Limit, such as constant(1.0); got {limit!r}"
        raise TypeError(msg)
    return limit


def _sizes(measure: Measure, params: optax.Params | None, norms: Any) -> Any:
    if params is None:
        msg = "this rule's limits depend on the parameters: call update(updates, state, params)"
        raise ValueError(msg)
    sizes = measure.norms(params)
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (sizes, norms)]
    if shapes[0] != shapes[1]:
        found = [
            tree.shape if hasattr(tree, "shape") else [x.shape for x in jax.tree.leaves(tree)]
            for tree in (sizes, norms)
        ]
        msg = f"the parameters have blocks of shape {found[0]}, the gradients {found[1]}"
        raise ValueError(msg)
    return sizes


def _check_blocks(norms: Any, previous: jax.Array) -> None:
    shape, _ = norms_shown(norms)
    if shape != previous.shape:
        msg = f"the gradients have blocks of shape {shape}, the parameters given to init {previous.shape}"
        raise ValueError(msg)
