"""NaN and infinity kept away from an optimizer, and which leaf held them."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import check_choice
from novoclip.clipping import count_up
from novoclip.guards.branch import when
from novoclip.leaves import finite_leaves, is_measured, reject_integers
from novoclip.paths import leaves_with_paths
from novoclip.wrappers.inner import checked_inner

POLICIES = ("skip", "zero_leaf", "zero_element")


class NonfiniteState(NamedTuple):
    """The state of `guard_nonfinite`; `locate_nonfinite` puts it into words.

    Attributes:
      steps: int32, steps seen; stops at the largest int32, as the other counters do.
      nonfinite: int32, steps with a gradient that was not finite.
      leaf_steps: int32 `(leaves,)`, steps in which that leaf was not finite.
      leaf_last: int32 `(leaves,)`, the last of them, counted from 1; 0 for none.
      inner: the optimizer's own.
    """

    steps: jax.Array
    nonfinite: jax.Array
    leaf_steps: jax.Array
    leaf_last: jax.Array
    inner: Any


def guard_nonfinite(
    inner: optax.GradientTransformation, *, policy: str = "skip"
) -> optax.GradientTransformationExtraArgs:
    """Keep NaN and infinity away from an optimizer, and remember which leaf held them.

    Args:
      inner: the optimizer, with the rules in front of it.
      policy: "skip" leaves out the step: updates are zero, and `inner` is not called; "zero_leaf" sets
        each leaf that is not finite to zeros, "zero_element" each such number, and goes on.

    Returns:
      A GradientTransformation with a `NonfiniteState`.

    Raises:
      TypeError: if `inner` is no GradientTransformation.
      ValueError: if `policy` is unknown. In `update`: if the number of leaves differs from that in `init`.

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

    def init(params: optax.Params) -> NonfiniteState:
        leaves = sum(is_measured(leaf) for leaf in jax.tree.leaves(params))
        zeros = functools.partial(jnp.zeros, dtype=jnp.int32)
        return NonfiniteState(zeros(()), zeros(()), zeros(leaves), zeros(leaves), rule.init(params))

    def update(
        updates: optax.Updates, state: NonfiniteState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, NonfiniteState]:
        reject_integers(updates)
        good = finite_leaves(updates)
        if good.shape != state.leaf_steps.shape:
            kept = state.leaf_steps.size
            msg = f"the gradients have {good.size} leaves with numbers, the parameters given to init {kept}"
            raise ValueError(msg)
        steps = count_up(state.steps, jnp.array(True))
        if policy == "skip":
            sent, memory = when(
                jnp.all(good), lambda: rule.update(updates, state.inner, params, **extra), updates, state.inner
            )
        else:
            sent, memory = rule.update(_cleaned(updates, good, policy), state.inner, params, **extra)
        return sent, NonfiniteState(
            steps=steps,
            nonfinite=count_up(state.nonfinite, ~jnp.all(good)),
            leaf_steps=count_up(state.leaf_steps, ~good),
            leaf_last=jnp.where(good, state.leaf_last, steps),
            inner=memory,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def locate_nonfinite(state: Any, params: optax.Params) -> str:
    """Say in words which gradients were not finite, by the state of `guard_nonfinite`.

    It reads the numbers, and so waits for the device: call it where you log.

    Args:
      state: any tree that contains one `NonfiniteState`, such as a whole optimizer state.
      params: the parameters that the guard was given in `init`, for the names of their leaves.

    Returns:
      A line for each leaf that was ever not finite, the latest first; or a sentence that there was none.

    Raises:
      ValueError: if there is no `NonfiniteState`, or more than one, or the leaves do not fit.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> params = {"w": jnp.zeros(2)}
      >>> print(locate_nonfinite(guard_nonfinite(optax.sgd(0.1)).init(params), params))
      no gradient was ever not finite in 0 steps
    """
    found = [
        node
        for node in jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, NonfiniteState))
        if isinstance(node, NonfiniteState)
    ]
    if len(found) != 1:
        msg = f"state must contain one NonfiniteState, from guard_nonfinite; found {len(found)}"
        raise ValueError(msg)
    guard = found[0]
    names = [path for path, leaf in leaves_with_paths(params) if is_measured(leaf)]
    if len(names) != guard.leaf_steps.shape[0]:
        msg = f"params has {len(names)} leaves with numbers, but the guard saw {guard.leaf_steps.shape[0]}"
        raise ValueError(msg)
    steps = int(guard.steps)
    times, last = (vector.tolist() for vector in (guard.leaf_steps, guard.leaf_last))
    bad = sorted((i for i in range(len(names)) if times[i]), key=lambda i: -last[i])
    lines = [f"{names[i]}: not finite in {times[i]} of {steps} steps, last at step {last[i]}" for i in bad]
    return "\n".join(lines) or f"no gradient was ever not finite in {steps} steps"


def _cleaned(updates: optax.Updates, good: jax.Array, policy: str) -> optax.Updates:
    flags = iter(good)

    def clean(leaf: Any) -> Any:
        if not is_measured(leaf):
            return leaf
        keep = next(flags) if policy == "zero_leaf" else jnp.isfinite(leaf)
        return jnp.where(keep, leaf, jnp.zeros((), jnp.result_type(leaf)))

    return jax.tree.map(clean, updates)
