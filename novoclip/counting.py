"""Counters of steps, and of gradients that were not finite: in which leaf, how often, and in which step last.

States saved by novoclip 0.1.0 lack some of these counters. In such a state a counter is `()`, and remains `()`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from novoclip.leaves import is_measured

Counter = Any  # an int32 array, or () where nothing is counted


def safe_increment(counter: jax.Array, condition: jax.Array) -> jax.Array:
    """Return the counter plus one if the condition is true, at most the largest int32."""
    return jnp.where(counter < jnp.iinfo(jnp.int32).max, counter + condition.astype(jnp.int32), counter)


def count(counter: Any, condition: jax.Array) -> Any:
    """Return the counter plus one if the condition is true; () if it is not counted."""
    return counter if isinstance(counter, tuple) else safe_increment(counter, condition)


def count_in_a_row(counter: Any, condition: jax.Array) -> Any:
    """Return the number of latest steps in a row with the condition, updated for one step; () if it is not counted."""
    return counter if isinstance(counter, tuple) else jnp.where(condition, safe_increment(counter, condition), 0)


def start_leaf_counts(params: optax.Params) -> tuple[jax.Array, jax.Array]:
    """Return `leaf_steps` and `leaf_last` at 0: an int32 vector each, with one entry per numeric leaf."""
    leaves = sum(is_measured(leaf) for leaf in jax.tree.leaves(params))
    return jnp.zeros((leaves,), jnp.int32), jnp.zeros((leaves,), jnp.int32)


def advance_leaf_counts(leaf_steps: Counter, leaf_last: Counter, bad: jax.Array, steps: jax.Array) -> tuple[Any, Any]:
    """Return `leaf_steps` and `leaf_last` after step `steps`, in which the leaves marked by `bad` were not finite."""
    if isinstance(leaf_steps, tuple):
        return leaf_steps, leaf_last
    return safe_increment(leaf_steps, bad), jnp.where(bad, steps, leaf_last)


def in_place(flags: jax.Array, shown: Any, updates: Any, params: Any, like: Counter) -> jax.Array:
    """Return flags of the numeric leaves of `shown` as flags of the numeric leaves that `init` was given.

    Args:
      flags: booleans, one for each numeric leaf of `shown`.
      shown: the gradients, with None in place of those that a mask hides.
      updates: the gradients.
      params: the parameters, or None. They show where gradients are missing.
      like: the counts, one for each numeric leaf that `init` was given.

    Raises:
      ValueError: if gradients are missing, and it is not known where.
    """
    if isinstance(like, tuple) or flags.shape == like.shape:
        return flags
    keys = [key for key, leaf in _with_keys(shown) if is_measured(leaf)]
    for own in (_measured_keys(updates), _measured_keys(params), [key for key, _ in _with_keys(updates)]):
        if len(own) == like.size and set(keys) <= set(own):
            positions = jnp.array([own.index(key) for key in keys], jnp.int32)
            return jnp.zeros(like.shape, bool).at[positions].set(flags)
    found = sum(is_measured(leaf) for leaf in jax.tree.leaves(updates))
    msg = (
        f"the gradients have {found} leaves with numbers, the parameters given to init {like.size}; "
        "where some have no gradient, call update(updates, state, params) with the parameters given to init"
    )
    raise ValueError(msg)


def _measured_keys(tree: Any) -> list[Any]:
    return [key for key, leaf in _with_keys(tree) if is_measured(leaf)]


def _with_keys(tree: Any) -> list[tuple[Any, Any]]:
    """Return the numeric leaves and those that are None, each with its keys."""
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: node is None)
    return [(keys, leaf) for keys, leaf in found if leaf is None or is_measured(leaf)]
