"""What all optimizers share: precision, skipped steps, clipping, weight decay and the learning rate."""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import check_choice, check_number, value_at
from novoclip.clipping import sees_all
from novoclip.counting import advance_leaf_counts, count_in_a_row, in_place, safe_increment, start_leaf_counts
from novoclip.leaves import finite_leaves, is_measured, named_leaves, narrow, reject_integers, with_numbers
from novoclip.masks import check_masks, with_gradients
from novoclip.mesh import shapes_of
from novoclip.optimizers.kept import as_computed, as_kept
from novoclip.optimizers.precision import check_shapes, in_precision, measured_leaves
from novoclip.optimizers.selection import negative, unless, zero_if
from novoclip.optimizers.step import MASK, Step, add_decay, check_decay
from novoclip.origin import check_origin, made_by
from novoclip.platforms import if_needed
from novoclip.ranges import common_dtype
from novoclip.safe_math import all_true
from novoclip.transforms import check_rule, check_rule_state, known_finite
from novoclip.typing import Clip, DecayMode, ScalarOrSchedule, SkipNonfinite

NONFINITE = ("skip", "propagate")
DECAY_MODES = ("decoupled", "coupled")


class Algorithm(NamedTuple):
    """The formula of an optimizer, in two halves. A step that is not finite is skipped between them.

    Pytrees hold float32 (float64) or complex arrays, and None in place of leaves that are not numeric.

    Attributes:
      init: `init(shapes) -> state`, from a pytree of ShapeDtypeStructs.
      learn: `learn(gradients, state, step) -> state`.
      follow: functions `follow(gradients, state, before, step) -> state`, for what is learned from the new state: each
        is called with that state, after a step that is not finite was skipped, and with the state before. In `learn` it
        would cost a copy: XLA's CPU backend writes out arrays that are used before and after the skip.
      direction: `direction(gradients, state, step) -> updates`, from the new state.
      name: the name in error messages, with the options that the state depends on.
      scaled: whether `direction` includes the learning rate already, as `momentum_of_steps` needs it.
      masks: the masks that its functions use, with their names in error messages; `init` checks them.
    """

    init: Callable[[Any], Any]
    learn: Callable[[Any, Any, Step], Any]
    direction: Callable[[Any, Any, Step], Any]
    name: str
    follow: tuple[Callable[[Any, Any, Any, Step], Any], ...] = ()
    scaled: bool = False
    masks: tuple[tuple[str, Any], ...] = ()


class OptimizerState(NamedTuple):
    """The state of every optimizer of novoclip.

    Attributes:
      steps: int32, steps taken; stops at the largest int32.
      nonfinite: int32, how many of them were skipped because a gradient was not finite.
      moments: the state of the algorithm, such as an `AdamState`.
      clip: the state of `clip=`; `()` without.
      origin: which algorithm made the state; it holds no array.
      leaf_steps: int32 `(leaves,)`, steps in which that leaf was not finite. This and the next two are `()` with
        `nonfinite="propagate"`, and in a state saved by 0.1.0.
      leaf_last: int32 `(leaves,)`, the last of those steps, counted from 1; 0 for none.
      nonfinite_in_a_row: int32, how many of the latest steps in a row were skipped.
    """

    steps: jax.Array
    nonfinite: jax.Array
    moments: Any
    clip: Any
    origin: Any = ()
    leaf_steps: Any = ()
    leaf_last: Any = ()
    nonfinite_in_a_row: Any = ()


def scale_by(algorithm: Algorithm, *, nonfinite: str) -> optax.GradientTransformationExtraArgs:
    """Return the transform that replaces gradients by an Algorithm's direction."""
    return _transform(algorithm, None, None, None, None, "decoupled", nonfinite)


def optimizer(
    algorithm: Algorithm,
    learning_rate: ScalarOrSchedule,
    *,
    clip: Clip = None,
    weight_decay: ScalarOrSchedule | None = None,
    weight_decay_mask: Any = None,
    weight_decay_mode: DecayMode = "decoupled",
    nonfinite: SkipNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Return the optimizer of an Algorithm, whose updates are minus the learning rate times the direction."""
    check_number("learning_rate", learning_rate, exclude_high=True)
    return _transform(algorithm, learning_rate, clip, weight_decay, weight_decay_mask, weight_decay_mode, nonfinite)


def _transform(
    algorithm: Algorithm,
    learning_rate: ScalarOrSchedule | None,
    clip: optax.GradientTransformation | None,
    weight_decay: ScalarOrSchedule | None,
    weight_decay_mask: Any,
    weight_decay_mode: str,
    nonfinite: str,
) -> optax.GradientTransformationExtraArgs:
    # A step is computed in at least float32 and cast to the gradient's dtype once, at its end.
    check_decay(weight_decay, weight_decay_mask)
    check_choice("weight_decay_mode", weight_decay_mode, DECAY_MODES)
    check_choice("nonfinite", nonfinite, NONFINITE)
    if clip is not None:
        check_rule("clip", clip, __name__)
    rule = optax.with_extra_args_support(clip or optax.identity())
    origin, rateless = made_by(algorithm.name), learning_rate is None
    pull = functools.partial(add_decay, rate=weight_decay, mask=weight_decay_mask)

    def init(params: optax.Params) -> OptimizerState:
        shapes = shapes_of(functools.partial(in_precision, dtype=common_dtype(measured_leaves(params))), params)
        zero = functools.partial(jnp.zeros, (), jnp.int32)
        check_masks((*algorithm.masks, (MASK, weight_decay_mask)), params)
        inside = () if clip is None else rule.init(params)
        check_rule_state("clip", inside, OptimizerState)
        state = OptimizerState(zero(), zero(), algorithm.init(shapes), inside, origin)
        if nonfinite == "propagate":
            return state
        leaf_steps, leaf_last = start_leaf_counts(params)
        return state._replace(leaf_steps=leaf_steps, leaf_last=leaf_last, nonfinite_in_a_row=zero())

    def advance(
        policy: str, updates: optax.Updates, state: OptimizerState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, OptimizerState]:
        reject_integers(updates)
        check_origin(state, OptimizerState, origin)
        if clip is None and jax.tree.leaves(state.clip):
            msg = f"the state has a clip= of {type(state.clip).__name__}, but the optimizer has none: pass that clip="
            raise ValueError(msg)
        all_params, params = params, with_gradients(params, updates)
        clipped, clip_state = (updates, ()) if clip is None else rule.update(updates, state.clip, params, **extra)
        norms = getattr(clip_state, "norms", None) if sees_all(clip) else None
        bad = _bad_leaves(updates, all_params, state.leaf_steps, policy, norms)
        skipped = ~all_true(~bad)
        dtype = common_dtype([*measured_leaves(updates), *measured_leaves(state.moments)])
        gradients, weights, before = (
            *(in_precision(x, dtype) for x in (clipped, params)),
            as_computed(state.moments, dtype),
        )
        taken = state.steps - state.nonfinite
        rate = value_at(1.0 if learning_rate is None else learning_rate, taken, jnp.zeros((), dtype), "learning_rate")
        step = Step(taken, dtype, params, weights, rate)

        choose = functools.partial(unless, None if policy == "propagate" else skipped)
        if weight_decay_mode == "coupled":
            gradients = pull(gradients, step)
        moments = _learned_from(algorithm, gradients, before, step, choose)
        direction = algorithm.direction(gradients, moments, step)
        if weight_decay_mode == "decoupled":
            direction = pull(direction, step, scaled=algorithm.scaled)
        direction = direction if rateless else negative(direction, None if algorithm.scaled else step.learning_rate)
        check_shapes(direction, in_precision(updates, dtype), algorithm.name)
        if policy == "skip":
            direction = jax.tree.map(functools.partial(zero_if, skipped), direction)
        direction = iter(jax.tree.leaves(direction))
        steps = safe_increment(state.steps, jnp.array(True))
        leaf_steps, leaf_last = advance_leaf_counts(state.leaf_steps, state.leaf_last, bad, steps)
        return jax.tree.map(
            lambda x: narrow(next(direction), jnp.result_type(x)) if is_measured(x) else x, updates
        ), OptimizerState(
            steps=steps,
            nonfinite=safe_increment(state.nonfinite, skipped),
            moments=as_kept(moments, state.moments, steps, None if policy == "propagate" else skipped),
            clip=choose(clip_state, state.clip),
            origin=state.origin,
            leaf_steps=leaf_steps,
            leaf_last=leaf_last,
            nonfinite_in_a_row=count_in_a_row(state.nonfinite_in_a_row, skipped),
        )

    def update(
        updates: optax.Updates, state: OptimizerState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, OptimizerState]:
        return advance(nonfinite, updates, state, params, **extra)

    # For guards, which have searched for NaN already.
    known_finite(update, functools.partial(advance, "propagate"))
    return optax.GradientTransformationExtraArgs(init, update)


def _learned_from(algorithm: Algorithm, gradients: Any, before: Any, step: Step, choose: Callable[..., Any]) -> Any:
    """Return what an Algorithm learns, or raise a ValueError that names it if gradients and state do not fit."""

    def fitting(learn: Callable[[], Any]) -> Any:
        return _fitting(algorithm, gradients, before, learn)

    moments = choose(fitting(lambda: algorithm.learn(gradients, before, step)), before)
    for follow in algorithm.follow:
        new = fitting(functools.partial(follow, gradients, moments, before, step))
        moments = choose(new, before, moments)
    return moments


def _fitting(algorithm: Algorithm, gradients: Any, before: Any, learn: Callable[[], Any]) -> Any:
    try:
        found = learn()
    except (TypeError, ValueError) as error:
        if _fit(algorithm, gradients, before):
            raise
        msg = f"the gradients do not fit the state of {algorithm.name}: they must have the structure and the shapes of "
        msg += f"the parameters given to init, and a leaf may be None only if it was None there too: {error}"
        raise ValueError(msg) from error
    check_shapes(found, before, algorithm.name)
    return found


def _fit(algorithm: Algorithm, gradients: Any, moments: Any) -> bool:
    """Whether moments have the structure and the shapes of those that `init` makes for these gradients."""
    first = jax.eval_shape(lambda: as_computed(algorithm.init(gradients), jnp.float32))
    made, own = (jax.tree.map(jnp.shape, tree) for tree in (first, moments))
    return bool(made == own)


def _bad_leaves(updates: Any, params: Any, leaf_steps: Any, nonfinite: str, norms: Any) -> jax.Array:
    """Return which leaves are not finite. With "propagate", or finite norms of all elements, nothing is checked."""
    if nonfinite == "propagate":
        return jnp.zeros(getattr(leaf_steps, "shape", 0), bool)
    if norms is None:
        bad = ~finite_leaves(updates)
    else:
        numeric = [leaf for _, leaf in named_leaves(updates)]
        none, found = jnp.zeros(len(numeric), bool), ~all_true(jnp.isfinite(norms))
        bad = if_needed(found, lambda *leaves: ~finite_leaves(with_numbers(updates, leaves)), lambda *_: none, *numeric)
    return in_place(bad, updates, updates, params, leaf_steps)
