"""Masks: pytrees of booleans that select leaves."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import optax

from novoclip.matching import is_part
from novoclip.paths import is_function, leaves_with_paths, some_of


def mask_tree(mask: Any, tree: Any, argument: str = "mask") -> Any:
    """Return a mask as a pytree of booleans that is a prefix of another pytree.

    Args:
      mask: the mask, or a function of `tree` that returns it.
      tree: the parameters, or the gradients.
      argument: the name of the mask in error messages.

    Raises:
      TypeError: if an entry is not a boolean.
      ValueError: if the mask is not a prefix of `tree`, or selects none of its leaves.
    """
    if not jax.tree.leaves(tree):
        # Nothing to select, as in the placeholder for parameters that `optax.tree_map_params` gives to init.
        return jax.tree.map(bool, tree)
    chosen = mask(tree) if is_function(mask) else mask
    for path, entry in leaves_with_paths(chosen):
        if not isinstance(entry, bool | np.bool_) and not (hasattr(entry, "dtype") and entry.dtype == bool):
            msg = f"{argument} must be a pytree of booleans, or a function that returns one; got {entry!r} at {path!r}"
            raise TypeError(msg)
    paths = [path for path, _ in leaves_with_paths(tree)]
    try:
        kept = jax.tree.map(lambda on, part: len(jax.tree.leaves(part)) if on else 0, chosen, tree)
    except ValueError as error:
        msg = f"{argument} must be a prefix of the parameters, whose leaves are {some_of(paths)}: {error}"
        raise ValueError(msg) from error
    if paths and not sum(jax.tree.leaves(kept)) and not is_part(tree):
        msg = f"{argument} selects no leaf, of {some_of(paths)}"
        raise ValueError(msg)
    return chosen


def check_masks(masks: Iterable[tuple[str, Any]], tree: Any) -> None:
    """Raise as `mask_tree` does if a mask that is not None does not fit; each comes with the name of its argument."""
    for argument, mask in masks:
        if mask is not None:
            mask_tree(mask, tree, argument)


def hide(tree: Any, chosen: Any) -> Any:
    """Return the pytree with None in place of the leaves that a pytree of booleans excludes."""
    return jax.tree.map(lambda on, part: part if on else jax.tree.map(lambda _: None, part), chosen, tree)


def restore(shown: Any, tree: Any) -> Any:
    """Return `shown` with the leaves of `tree` in place of those that `hide` removed."""
    return jax.tree.map(lambda leaf, own: own if leaf is None else leaf, shown, tree, is_leaf=lambda node: node is None)


def masked(rule: optax.GradientTransformationExtraArgs, mask: Any) -> optax.GradientTransformationExtraArgs:
    """Return the transform that applies a rule to the leaves that a mask selects, and passes the others on unchanged.

    It is `optax.masked` without a state of its own.
    """
    if mask is None:
        return rule

    def init(params: optax.Params) -> Any:
        return rule.init(hide(params, mask_tree(mask, params)))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, Any]:
        chosen = mask_tree(mask, updates)
        shown = hide(updates, chosen)
        sent, state = rule.update(shown, state, with_gradients(params, shown), **extra)
        return restore(sent, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def scaling_only(rule: optax.GradientTransformationExtraArgs, mask: Any) -> optax.GradientTransformationExtraArgs:
    """Return the rule that sees all leaves, but changes only those of a mask."""
    if mask is None:
        return rule

    def init(params: optax.Params) -> Any:
        mask_tree(mask, params, "scale_mask")
        return rule.init(params)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, Any]:
        sent, state = rule.update(updates, state, params, **extra)
        return restore(hide(sent, mask_tree(mask, updates, "scale_mask")), updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def with_gradients(params: Any, updates: Any) -> Any:
    """Return the parameters that have a gradient, with None in place of the others.

    A model may hold functions, strings, integers, and arrays that are not trained. They are ignored where the updates
    have None.

    Raises:
      ValueError: if the parameters do not have the structure of the updates.
    """
    if params is None:
        return None
    try:
        return jax.tree.map(
            lambda gradient, part: None if gradient is None else part,
            updates,
            params,
            is_leaf=lambda node: node is None,
        )
    except ValueError as error:
        msg = f"params must have the structure of the updates: {error}"
        raise ValueError(msg) from error
