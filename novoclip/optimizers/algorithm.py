"""What all optimizers share: precision, skipped steps, clipping, weight decay and the learning rate."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import optax

from novoclip.arguments import Schedulable, check_choice, check_number
from novoclip.clipping import sees_all
from novoclip.counting import advance_leaf_counts, count_in_a_row, in_place, safe_increment, start_leaf_counts
from novoclip.leaves import finite_leaves, is_measured, named_leaves, narrow, reject_integers, with_numbers
from novoclip.masks import check_mask, with_gradients
from novoclip.mesh import shapes_of
from novoclip.optimizers.precision import check_shapes, in_precision, measured_leaves
from novoclip.optimizers.step import Step, add_decay, check_decay
from novoclip.origin import check_origin, made_by
from novoclip.platforms import if_needed
from novoclip.ranges import common_dtype
from novoclip.transforms import check_rule, check_rule_state

NONFINITE = ("skip", "propagate")
DECAYS = ("decoupled", "coupled")


class Algorithm(NamedTuple):
    """The formula of an optimizer, in two halves, between which a step that is not finite is left out.

    Trees hold float32 (float64) or complex arrays, and None in place of leaves without numbers.

    Attributes:
      init: `init(shapes) -> state`, from a tree of ShapeDtypeStructs.
      learn: `learn(gradients, state, step) -> state`.
      follow: `follow(gradients, state, before, step) -> state`, what is learned from what was learned: from the new
        state as it is kept, and the one before. XLA's CPU backend writes out, beside the state, what is used before a
        step that is not finite is left out, and after.
      direction: `direction(gradients, state, step) -> updates`, from the new state.
      name: what error messages call it, with the options that its state depends on.
    """

    init: Callable[[Any], Any]
    learn: Callable[[Any, Any, Step], Any]
    direction: Callable[[Any, Any, Step], Any]
    name: str
    follow: Callable[[Any, Any, Any, Step], Any] | None = None


class OptimizerState(NamedTuple):
    """The state of every optimizer of novoclip.

    Attributes:
      steps: int32, steps taken; stops at the largest int32.
      nonfinite: int32, steps among them that were skipped because a gradient was not finite.
      moments: the state of the algorithm, such as an `AdamState`.
      clip: the state of `clip=`; `()` without.
      origin: which algorithm made the state; it holds no array.
      leaf_steps: int32 `(leaves,)`, steps in which that leaf was not finite. This and the next two are `()` with
        `nonfinite="propagate"`, and in a state saved by 0.1.0.
      leaf_last: int32 `(leaves,)`, the last of them, counted from 1; 0 for none.
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
    """Make a transform of an Algorithm's direction."""
    return _transform(algorithm, lambda updates, _: updates, None, None, None, "decoupled", nonfinite)


def optimizer(
    algorithm: Algorithm,
    learning_rate: Schedulable,
    *,
    clip: optax.GradientTransformation | None = None,
    weight_decay: Schedulable | None = None,
    weight_decay_mask: Any = None,
    decay: str = "decoupled",
    nonfinite: str = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Make an optimizer of an Algorithm: minus the learning rate times its direction."""
    check_number("learning_rate", learning_rate, exclude_high=True)

    def finish(updates: Any, step: Step) -> Any:
        rate = step.value(learning_rate, "learning_rate")
        return jax.tree.map(lambda u: -rate.astype(u.dtype) * u, updates)

    return _transform(algorithm, finish, clip, weight_decay, weight_decay_mask, decay, nonfinite)


def _transform(
    algorithm: Algorithm,
    finish: Callable[[Any, Step], Any],
    clip: optax.GradientTransformation | None,
    weight_decay: Schedulable | None,
    weight_decay_mask: Any,
    decay: str,
    nonfinite: str,
) -> optax.GradientTransformationExtraArgs:
    # A step is computed in at least float32 and cast to the gradient's dtype once, at its end.
    check_decay(weight_decay, weight_decay_mask)
    check_choice("decay", decay, DECAYS)
    check_choice("nonfinite", nonfinite, NONFINITE)
    if clip is not None:
        check_rule("clip", clip, __name__)
    rule = optax.with_extra_args_support(clip or optax.identity())
    origin = made_by(algorithm.name)
    pull = functools.partial(add_decay, rate=weight_decay, mask=weight_decay_mask)

    def init(params: optax.Params) -> OptimizerState:
        shapes = shapes_of(functools.partial(in_precision, dtype=common_dtype(measured_leaves(params))), params)
        zero = functools.partial(jnp.zeros, (), jnp.int32)
        check_mask(weight_decay_mask, params, "weight_decay_mask")
        inside = () if clip is None else rule.init(params)
        check_rule_state("clip", inside, OptimizerState)
        state = OptimizerState(zero(), zero(), algorithm.init(shapes), inside, origin)
        if nonfinite == "propagate":
            return state
        leaf_steps, leaf_last = start_leaf_counts(params)
        return state._replace(leaf_steps=leaf_steps, leaf_last=leaf_last, nonfinite_in_a_row=zero())

    def update(
        updates: optax.Updates, state: OptimizerState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, OptimizerState]:
        reject_integers(updates)
        check_origin(state, OptimizerState, origin)
        if clip is None and jax.tree.leaves(state.clip):
            msg = f"this state has a clip= of {type(state.clip).__name__}, but this optimizer has none"
            raise ValueError(msg)
        whole, params = params, with_gradients(params, updates)
        clipped, clip_state = (updates, ()) if clip is None else rule.update(updates, state.clip, params, **extra)
        norms = getattr(clip_state, "norms", None) if sees_all(clip) else None
        bad = _bad_leaves(updates, whole, state.leaf_steps, nonfinite, norms)
        skipped = jnp.any(bad)
        dtype = common_dtype([*measured_leaves(updates), *measured_leaves(state.moments)])
        gradients, weights, before = (in_precision(tree, dtype) for tree in (clipped, params, state.moments))
        step = Step(state.steps - state.nonfinite, dtype, params, weights)

        choose = functools.partial(_unless, None if nonfinite == "propagate" else skipped)
        if decay == "coupled":
            gradients = pull(gradients, step)
        moments = choose(learned_from(algorithm, gradients, before, step), before)
        moments = choose(followed_from(algorithm, gradients, moments, before, step), before, moments)
        direction = algorithm.direction(gradients, moments, step)
        if decay == "decoupled":
            direction = pull(direction, step)
        direction = finish(direction, step)
        check_shapes(direction, in_precision(updates, dtype), algorithm.name)
        if nonfinite == "skip":
            direction = jax.tree.map(functools.partial(_zero_if, skipped), direction)
        direction = iter(jax.tree.leaves(direction))
        steps = safe_increment(state.steps, jnp.array(True))
        leaf_steps, leaf_last = advance_leaf_counts(state.leaf_steps, state.leaf_last, bad, steps)
        return jax.tree.map(
            lambda x: narrow(next(direction), jnp.result_type(x)) if is_measured(x) else x, updates
        ), OptimizerState(
            steps=steps,
            nonfinite=safe_increment(state.nonfinite, skipped),
            moments=jax.tree.map(lambda new, old: narrow(new, old.dtype), moments, state.moments),
            clip=choose(clip_state, state.clip),
            origin=state.origin,
            leaf_steps=leaf_steps,
            leaf_last=leaf_last,
            nonfinite_in_a_row=count_in_a_row(state.nonfinite_in_a_row, skipped),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _unless(skipped: jax.Array | None, new: Any, old: Any, chosen: Any = None) -> Any:
    """Return the new arrays unless the step is skipped, else the old; as they are those that were chosen before."""
    if skipped is None:
        return new
    done = {id(leaf) for leaf in jax.tree.leaves(chosen)}

    def either(a: Any, b: Any) -> Any:
        # Some transforms let a state take the gradients' dtype, as the state of clip= might.
        return a if id(a) in done else lax.select_n(skipped, jnp.asarray(a, jnp.result_type(b)), jnp.asarray(b))

    return jax.tree.map(either, new, old)


@jax.jit
def _zero_if(skipped: jax.Array, leaf: jax.Array) -> jax.Array:
    """Return zeros if the step is skipped. Under jit of its own: for leaves of one shape it is lowered once."""
    return lax.select_n(skipped, leaf, lax.full_like(leaf, 0))


def learned_from(algorithm: Algorithm, gradients: Any, moments: Any, step: Step) -> Any:
    """Return what an Algorithm learns, or raise a ValueError that names it if gradients and state do not fit."""
    return _fitting(algorithm, moments, lambda: algorithm.learn(gradients, moments, step))


def followed_from(algorithm: Algorithm, gradients: Any, moments: Any, before: Any, step: Step) -> Any:
    """Return what an Algorithm learns from what it learned, or raise likewise."""
    follow = algorithm.follow
    return moments if follow is None else _fitting(algorithm, before, lambda: follow(gradients, moments, before, step))


def _fitting(algorithm: Algorithm, before: Any, learn: Callable[[], Any]) -> Any:
    try:
        found = learn()
    except (TypeError, ValueError) as error:
        msg = f"the gradients do not fit the state of {algorithm.name}: they must have the structure and the shapes of "
        msg += f"the parameters given to init, and a leaf may be None only if it was None there too: {error}"
        raise ValueError(msg) from error
    check_shapes(found, before, algorithm.name)
    return found


def _bad_leaves(updates: Any, params: Any, leaf_steps: Any, nonfinite: str, norms: Any) -> jax.Array:
    """Return which leaves are not finite; nobody looks under "propagate", nor where norms of all numbers are finite."""
    if nonfinite == "propagate":
        return jnp.zeros(getattr(leaf_steps, "shape", 0), bool)
    if norms is None:
        bad = ~finite_leaves(updates)
    else:
        numbers = [leaf for _, leaf in named_leaves(updates)]
        none, seen = jnp.zeros(len(numbers), bool), ~jnp.all(jnp.isfinite(norms))
        bad = if_needed(seen, lambda *leaves: ~finite_leaves(with_numbers(updates, leaves)), lambda *_: none, *numbers)
    return in_place(bad, updates, updates, params, leaf_steps)


def check_dtype(name: str, dtype: Any) -> None:
    """Raise unless `dtype` is None or names a floating dtype."""
    if dtype is not None and not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
        msg = f"{name} must be a floating dtype or None; got {dtype!r}"
        raise TypeError(msg)
