"""clip_by_limit(measure, limit, shape): build a clipping rule from three independent parts."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import check_choice, check_flag
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
from novoclip.learning import freeze_nonfinite
from novoclip.leaves import is_measured, reject_integers
from novoclip.limit import Limit, name_of
from novoclip.masks import masked, with_gradients
from novoclip.measure import ALL, Measure, norm_shapes, total_norm
from novoclip.origin import check_origin, made_by
from novoclip.per_element import check_history, over_leaves
from novoclip.rounding import is_beyond, rounded_like, rounding_of
from novoclip.shapes import CUTS, SHAPES
from novoclip.slices import Slices
from novoclip.typing import Granularity, Mask, Nonfinite, Shape
from novoclip.written import kept_apart

NONFINITE = ("zero", "propagate")


def clip_by_limit(
    measure: Granularity,
    limit: Limit | None = None,
    shape: Shape = "hard",
    *,
    nonfinite: Nonfinite = "zero",
    count: bool | None = None,
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Build a gradient clipping rule from a measure of norms, a limit on them and a clipping shape.

    The gradients are divided into blocks. A block is the unit that is clipped together: the whole pytree, a tensor, an
    output unit or an element. Each block g with the norm n and the limit c becomes g shape(n, c) / n.

    Args:
      measure: the blocks and their norms: "tree" (one block), "tensor" (each leaf), "unit" (each output unit; a vector
        or a scalar is one) or "element" (each element), with Euclidean norms; or a Measure, such as
        `resolve_measure("tensor", "l1")` or `groups(...)`.
      limit: the limits of the blocks at each step: a fixed one, such as `limits.constant(1.0)`, or one that learns from
        the norms, such as `limits.autoclip(90.0)`. Required. Schedules count every update, from 0.
      shape: the new norm of a block: "hard" (min(n, c)), "tanh", "arctan", "algebraic" and "smooth" (norms that
        approach c smoothly; "smooth", n / (1 + n / c), the slowest), "normalize" (c, also for smaller blocks) or "drop"
        (0 beyond c).
      nonfinite: what happens to a block whose norm is not finite, or whose limit is NaN (which a schedule may return).
        "zero" sets the block to zero; "propagate" passes it on. Neither changes the state of the limit for that block.
        Per element, an infinity is clipped like any large element; where there is no limit, it counts as not finite.
      count: whether to keep the statistics `fraction`, `clipped` and `nonfinite` in the state. None for yes, except per
        element, where counting takes one more pass over the gradients.
      mask: which leaves the rule applies to: a pytree of booleans that is a prefix of the parameters, or a function
        that takes the parameters or gradients and returns one. The others pass unchanged and do not count in the norm.
        None for all.

    Returns:
      An `optax.GradientTransformationExtraArgs` with a `ClipState`.

    Raises:
      TypeError: if `measure` is neither a string nor a Measure, or `limit` is not a Limit.
      ValueError: if a string is not one of those listed. In `init` and `update`: if the Limit needs the parameters and
        they are absent, the number of blocks (per unit, of leaves) differs from that in `init`, the state is that of
        another rule, or `mask` selects no leaf.

    Example:
      >>> import jax.numpy as jnp
      >>> from novoclip import limits
      >>> rule = clip_by_limit("tensor", limits.constant(1.0))
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
    start, judge = judging(measure, limit, counting=counting)
    target = functools.partial(new_norm, shape=shape, nonfinite=nonfinite, elementwise=measure.elementwise)

    def init(params: optax.Params) -> ClipState:
        state = start(params)
        return state if measure.elementwise else state._replace(norms_after=jnp.zeros_like(state.norms))

    def update(
        updates: optax.Updates, state: ClipState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, ClipState]:
        judged = judge(updates, state, params, extra)
        norms = judged.norms
        if counting and measure.elementwise:
            # Otherwise XLA computes absolute values once, for counting and clipping, and writes them to memory.
            updates = jax.tree.map(lambda x: kept_apart(x) if is_measured(x) else x, updates)
            norms = measure.norms(updates)
        new = jax.tree.map(lambda n, c, r: target(n, c, rounding=r), norms, judged.limits, judged.roundings)
        rescaled = measure.rescale(updates, norms, new)
        after = judged.state
        if not isinstance(after.norms_after, tuple):
            shown = target(after.norms, after.limits) if isinstance(new, Slices) else new
            after = after._replace(norms_after=shown.astype(after.norms.dtype))
        return rescaled, after

    if getattr(measure.norms, ALL, False):
        update.__dict__[ALL] = True
    return masked(optax.GradientTransformationExtraArgs(init, update), mask)


def sees_all(rule: Any) -> bool:
    """Return whether the norms in a rule's state cover all elements: if one is not finite, a norm is not.

    The mark is on the update function, since the other fields of a rule or a Measure may be replaced.
    """
    return getattr(getattr(rule, "update", None), ALL, False)


class Judged(NamedTuple):
    """The norms of a step and their limits.

    Attributes:
      norms: the norms, as the Measure returns them.
      limits: the limit of each norm.
      roundings: how far a norm may be above its limit by rounding alone, as a fraction of the limit.
      state: the state after the step.
    """

    norms: Any
    limits: Any
    roundings: Any
    state: ClipState


def judging(measure: Measure, limit: Limit, *, counting: bool, elsewhere: bool = False) -> tuple[Any, Any]:
    """Return `init(params)` and `judge(updates, state, params, extra)`; the latter returns a Judged.

    Args:
      measure: the blocks and their norms.
      limit: the limits of the norms.
      counting: whether `judge` counts the blocks beyond their limits.
      elsewhere: whether the caller keeps these counts, in the same state.
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
            known["total"] = total_norm(norms)
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


def new_norm(
    norm: jax.Array, limit: jax.Array, shape: str, nonfinite: str, *, elementwise: bool, rounding: float | None = None
) -> jax.Array:
    """Return the new norm of a block: shape(norm, limit), or that of `nonfinite` if the norm is not finite."""
    # An infinite element is clipped like a large one. A block with an infinite norm has no direction to scale.
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
            "To clip at a fixed threshold, write clip_by_value, clip_by_norm or clip_by_global_norm"
        )
        raise TypeError(msg)
    if not isinstance(limit, Limit):
        msg = f"limit must be a Limit, such as limits.constant(1.0); got {limit!r}"
        raise TypeError(msg)
    return limit


def _sizes(measure: Measure, params: optax.Params | None, norms: Any) -> Any:
    if params is None:
        msg = "this rule's limits depend on the parameters, but params is None: call update(updates, state, params)"
        raise ValueError(msg)
    sizes = measure.norms(params)
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (sizes, norms)]
    if shapes[0] != shapes[1]:
        found = [
            tree.shape if hasattr(tree, "shape") else [x.shape for x in jax.tree.leaves(tree)]
            for tree in (sizes, norms)
        ]
        msg = (
            f"the parameters have blocks of shape {found[0]}, the gradients {found[1]}: "
            "pass parameters and gradients whose leaves have the same shapes"
        )
        raise ValueError(msg)
    return sizes


def _check_blocks(norms: Any, previous: jax.Array) -> None:
    shape, _ = norms_shown(norms)
    if shape != previous.shape:
        msg = (
            f"the gradients have blocks of shape {shape}, the parameters given to init {previous.shape}: "
            "call init with parameters whose leaves have the shapes of the gradients"
        )
        raise ValueError(msg)
