"""Checks of arguments about paths: functions that match no leaf, and entries that name no leaf."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.paths import Path, check_distinct, leaves_with_paths, some_of


class ByPath(NamedTuple):
    """An argument that has a value for each leaf.

    Attributes:
      at: `at(path, leaf)`, the value for a leaf.
      check: `check(tree)` raises a ValueError if the argument does not fit a pytree.
    """

    at: Callable[[Any, Any], Any]
    check: Callable[[Any], None]


def check_function(
    argument: str, answers: Sequence[tuple[Path, bool]], tree: Any, nothing: str, ask: Callable[[Any, Any], Any]
) -> None:
    """Raise a ValueError if a function of paths matches no leaf, or cannot distinguish two leaves.

    Args:
      argument: the name of the function in error messages.
      answers: the paths for which it was called, and whether it matches them.
      tree: the pytree that the paths are from. Where leaves are hidden, as in `optax.partition`, the function may be
        meant for the hidden ones.
      nothing: the part of the error message that says what the function returned for every leaf.
      ask: the function, which is also called for the paths of missing leaves.
    """
    paths = [path for path, _ in answers]
    check_distinct(argument, paths)
    if paths and not any(hit for _, hit in answers) and not may_match_hidden(ask, tree):
        msg = f"{argument} {nothing}; the paths are {some_of(paths)}"
        raise ValueError(msg)


def check_entries(argument: str, entries: Iterable[tuple[str, ...]], tree: Any) -> None:
    """Raise a ValueError if the keys of an entry lead to no leaf and no subtree of another pytree."""
    nodes = leaves_with_paths(tree, is_leaf=_is_hidden)
    known = {path.keys[:end] for path, _ in nodes for end in range(len(path.keys) + 1)}
    hidden = {path.keys for path, node in nodes if _is_hidden(node)}
    for keys in entries:
        within_hidden = any(keys[:end] in hidden for end in range(len(keys) + 1))
        if known and keys not in known and not within_hidden:
            msg = f"{argument} has an entry for {'/'.join(keys)!r}, which is not a leaf or subtree of the parameters; "
            msg += f"the paths are {some_of(path for path, _ in nodes)}"
            raise ValueError(msg)


def may_match_hidden(ask: Callable[[Any, Any], Any], tree: Any) -> bool:
    """Whether a function of (path, leaf) may be meant for leaves that are hidden, or None, in a pytree."""
    if is_part(tree):
        return True
    missing = [path for path, node in leaves_with_paths(tree, is_leaf=_is_hidden) if node is None]
    return any(_answers(ask, path) for path in missing)


def _answers(ask: Callable[[Any, Any], Any], path: Path) -> bool:
    try:
        return bool(ask(path, jax.ShapeDtypeStruct((), jnp.float32)))
    except (AttributeError, IndexError, TypeError, ValueError):
        return True  # it uses the leaf, about which nothing is known


def is_part(tree: Any) -> bool:
    """Whether a pytree is the visible part of another in `optax.masked` or `optax.partition`."""
    return any(_is_masked(node) for _, node in leaves_with_paths(tree, is_leaf=_is_masked))


def _is_hidden(node: Any) -> bool:
    return node is None or _is_masked(node)


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)
