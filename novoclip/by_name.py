"""Thresholds by name: one rule for each entry of a table, for the leaves that its name matches."""

from collections.abc import Callable, Mapping
import difflib
import fnmatch
from typing import Any

import jax
import optax

from novoclip.masks import hide, restore, with_gradients
from novoclip.matching import is_part
from novoclip.paths import leaves_with_paths, some_of

REST = "*"  # the name of all leaves that no other name matches
PATTERN = frozenset("*?[")


def at_thresholds(
    argument: str,
    threshold: Any,
    make: Callable[[Any], optax.GradientTransformationExtraArgs],
    label_of: Callable[[Any, Any], str] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Return the rule of a threshold, or of a mapping from names to thresholds."""
    return by_name(argument, threshold, make, label_of) if isinstance(threshold, Mapping) else make(threshold)


def by_name(
    argument: str,
    table: Mapping[str, Any],
    make: Callable[[Any], optax.GradientTransformationExtraArgs],
    label_of: Callable[[Any, Any], str] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Return the rule that applies `make(threshold)` to the leaves that each name of a table matches.

    A name is the label of a leaf, a prefix of it that ends where a part of a path ends, or a pattern as in `fnmatch`.
    A label is matched before a prefix, the longest prefix before a pattern, and "*" last.

    Args:
      argument: what error messages call the table.
      table: names and thresholds. None, and no name that matches, leave a leaf as it is.
      make: a function that returns the rule of a threshold.
      label_of: a function of (path, leaf) that returns the label of a leaf; by default its path.

    Returns:
      A rule whose state is a dict of states by name.

    Raises:
      TypeError: if a name is no string.
      ValueError: if the table is empty. In `init`: if a name matches no leaf. In `update`: if the state was made with
        other names. In both: if two patterns match one leaf.
    """
    _check_table(argument, table)
    rules = {name: make(value) for name, value in table.items() if value is not None}

    def masks_of(tree: Any, *, checked: bool = False) -> dict[str, Any]:
        paths = leaves_with_paths(tree)
        labels = [path if label_of is None else label_of(path, leaf) for path, leaf in paths]
        found = [name_for(str(label), list(table), argument) for label in labels]
        idle = [name for name in table if name not in (*found, REST)]
        if checked and idle and paths and not is_part(tree):
            near = difflib.get_close_matches(idle[0], map(str, labels), 4, 0.0)
            msg = f"{argument} has a name that matches nothing: {some_of(idle)}; the leaves are {some_of(near)}"
            msg += f" and {len(set(labels)) - len(set(near))} more" if len(set(labels)) > len(set(near)) else ""
            raise ValueError(msg)
        structure = jax.tree.structure(tree)
        return {name: jax.tree.unflatten(structure, [name == each for each in found]) for name in rules}

    def init(params: optax.Params) -> dict[str, Any]:
        masks = masks_of(params, checked=True)
        return {name: rule.init(hide(params, masks[name])) for name, rule in rules.items()}

    def update(
        updates: optax.Updates, state: dict[str, Any], params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, dict[str, Any]]:
        _check_state(argument, state, rules)
        masks, states = masks_of(updates), {}
        for name, rule in rules.items():
            shown = hide(updates, masks[name])
            sent, states[name] = rule.update(shown, state[name], with_gradients(params, shown), **extra)
            updates = restore(sent, updates)
        return updates, states

    return optax.GradientTransformationExtraArgs(init, update)


def _check_table(argument: str, table: Mapping[Any, Any]) -> None:
    if not table:
        msg = f"{argument} must not be an empty mapping: write {{'*': 1.0}}, say"
        raise ValueError(msg)
    for name in table:
        if not isinstance(name, str):
            msg = f"{argument} must have strings as names; got {name!r}"
            raise TypeError(msg)
        if isinstance(table[name], Mapping):
            msg = f"{argument} must be flat: write {name + '/' + str(next(iter(table[name]), 'kernel'))!r} as one name"
            raise TypeError(msg)


def _check_state(argument: str, state: Any, rules: Mapping[str, Any]) -> None:
    held = list(state) if isinstance(state, dict) else type(state).__name__
    if not isinstance(state, dict) or set(state) != set(rules):
        msg = f"the state does not fit {argument}: it holds {held}, where {list(rules)} is expected: call init again"
        raise ValueError(msg)


def name_for(label: str, names: list[str], argument: str) -> str | None:
    """Return the name that matches a label best, or None."""
    if label in names:
        return label
    prefixes = [name for name in names if label.startswith(name.rstrip("/") + "/")]
    if prefixes:
        return max(prefixes, key=len)
    patterns = [name for name in names if name != REST and PATTERN & set(name) and fnmatch.fnmatchcase(label, name)]
    if len(patterns) > 1:
        msg = f"{argument} has two patterns that match {label!r}: {patterns[0]!r} and {patterns[1]!r}"
        raise ValueError(msg)
    return patterns[0] if patterns else REST if REST in names else None
