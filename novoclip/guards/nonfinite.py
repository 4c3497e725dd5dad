"""NaN and infinity kept away from an optimizer, and which leaf held them."""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import check_choice
from novoclip.counting import advance_leaf_counts, count_in_a_row, in_place, safe_increment, start_leaf_counts
from novoclip.guards.shown import show
from novoclip.guards.taken import apply_if
from novoclip.leaves import finite_leaves, is_measured, reject_integers
from novoclip.origin import check_origin, made_by
from novoclip.safe_math import all_true
from novoclip.transforms import update_of_finite
from novoclip.typing import Mask
from novoclip.wrappers.inner import checked_inner

POLICIES = ("skip", "zero_leaf", "zero_element")


class NonfiniteState(NamedTuple):
    """The state of `guard_nonfinite`; `locate_nonfinite` formats it.

    Attributes:
      steps: int32, steps seen; stops at the largest int32, as the other counters do.
      nonfinite: int32, steps with a gradient that was not finite.
      leaf_steps: int32 `(leaves,)`, steps in which that leaf was not finite.
      leaf_last: int32 `(leaves,)`, the last of them, counted from 1; 0 for none.
      inner: the optimizer's own.
      nonfinite_in_a_row: int32, how many of the latest steps in a row had such a gradient; `()` in a state
        saved by 0.1.0.
      origin: that `guard_nonfinite` made the state; it holds no array.
    """

    steps: jax.Array
    nonfinite: jax.Array
    leaf_steps: jax.Array
    leaf_last: jax.Array
    inner: Any
    nonfinite_in_a_row: Any = ()
    origin: Any = ()


def guard_nonfinite(
    inner: optax.GradientTransformation,
    *,
    policy: Literal["skip", "zero_leaf", "zero_element"] = "skip",
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Skip steps whose gradients hold NaN or infinity, and count which leaf held them.

    A skipped step is computed of zeros, and not used: callbacks of `inner` run all the same, and its loops must end.

    Args:
      inner: the optimizer, with the rules before it: `guard_nonfinite(optax.chain(clip, adam))`.
      policy: "skip" skips the step: updates are zero, and the state of `inner` does not change; "zero_leaf" sets each
        leaf that is not finite to zeros, and "zero_element" each such element, before `inner` sees the gradients.
      mask: which leaves are searched: a pytree of booleans, a prefix of the parameters, or a function of the
        gradients that returns one; None for all. Leaves with False, such as frozen ones, never count as
        not finite. `inner` is given them too, with 0 in place of each element that is not finite.

    Returns:
      A GradientTransformation with a `NonfiniteState`.

    Raises:
      TypeError: if `inner` is no GradientTransformation. In `update`: if an entry of the mask is no boolean.
      ValueError: if `policy` is unknown. In `update`: if leaves are missing and nothing says which, or the mask
        is no prefix of the gradients, or hides all. Gradients may be None where the parameters given to
        `update` are those given to `init`.

    Example:
      >>> import jax.numpy as jnp, novoclip, optax
      >>> optimizer = guard_nonfinite(optax.adam(0.1))
      >>> params = {"layer": {"bias": jnp.zeros(2), "kernel": jnp.ones((2, 2))}}
      >>> gradients = {"layer": {"bias": jnp.array([1.0, jnp.nan]), "kernel": jnp.ones((2, 2))}}
      >>> updates, state = optimizer.update(gradients, optimizer.init(params), params)
      >>> print(updates["layer"]["bias"], novoclip.locate_nonfinite(state, params))
      [0. 0.] layer/bias: not finite in 1 of 1 steps, last at step 1

    References:
      `optax.apply_if_finite <https://optax.readthedocs.io/en/latest/api/transformations.html>`_, 2020,
      gives up after some such steps in a row and lets NaN through.
    """
    rule = checked_inner(inner)
    check_choice("policy", policy, POLICIES)
    origin = made_by("guard_nonfinite")

    def init(params: optax.Params) -> NonfiniteState:
        show(params, mask)  # raises if the mask does not fit
        zero = functools.partial(jnp.zeros, (), jnp.int32)
        return NonfiniteState(zero(), zero(), *start_leaf_counts(params), rule.init(params), zero(), origin)

    def update(
        updates: optax.Updates, state: NonfiniteState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, NonfiniteState]:
        check_origin(state, NonfiniteState, origin)
        shown = show(updates, mask)
        reject_integers(shown.leaves)
        good = finite_leaves(shown.leaves)
        bad = in_place(~good, shown.leaves, updates, params, state.leaf_steps)
        any_bad = ~all_true(~bad)
        steps = safe_increment(state.steps, jnp.array(True))
        if policy == "skip":
            sent, inner_state = apply_if(
                ~any_bad,
                lambda entering: update_of_finite(rule)(entering, state.inner, params, **extra),
                shown.rest,
                updates,
                state.inner,
            )
        else:
            cleaned = shown.complete(_cleaned(shown.leaves, good, policy))
            sent, inner_state = rule.update(cleaned, state.inner, params, **extra)
        leaf_steps, leaf_last = advance_leaf_counts(state.leaf_steps, state.leaf_last, bad, steps)
        return sent, NonfiniteState(
            steps=steps,
            nonfinite=safe_increment(state.nonfinite, any_bad),
            leaf_steps=leaf_steps,
            leaf_last=leaf_last,
            inner=inner_state,
            nonfinite_in_a_row=count_in_a_row(state.nonfinite_in_a_row, any_bad),
            origin=state.origin,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _cleaned(updates: optax.Updates, good: jax.Array, policy: str) -> optax.Updates:
    flags = iter(good)

    def clean(leaf: Any) -> Any:
        if not is_measured(leaf):
            return leaf
        keep = next(flags) if policy == "zero_leaf" else jnp.isfinite(leaf)
        return jnp.where(keep, leaf, jnp.zeros((), jnp.result_type(leaf)))

    return jax.tree.map(clean, updates)
