"""Leaves that stack several layers along their leading axes, as those of Flax's `nn.scan` do."""

from collections.abc import Callable
import numbers
from typing import Any

import jax

from novoclip.axes import AxesOf
from novoclip.leaves import named_leaves
from novoclip.matching import ByPath, check_entries, check_function
from novoclip.paths import Path, entry_for, is_function, leaves_with_paths

Stacked = Any  # an integer, a function of (path, leaf), or a pytree of integers that is a prefix of the parameters
StackedOf = Callable[[Any, jax.Array], int]


def resolve_stacked(stacked: Stacked) -> ByPath:
    """Return the value of `stacked` for each leaf: the number of its leading layer axes.

    Raises:
      TypeError: if `stacked` holds anything but integers. In `at`: if it returns anything else.
      ValueError: in `at`, if a leaf has fewer axes, or no entry in a pytree. In `check`: if a function returns 0 for
        every leaf, or an entry of a pytree matches no leaf.
    """
    if is_function(stacked):

        def at(name: Path, leaf: jax.Array) -> int:
            return _checked(stacked(name, leaf), name, leaf)

        def check(tree: Any) -> None:
            answers = [(name, at(name, leaf) > 0) for name, leaf in named_leaves(tree)]
            check_function("stacked", answers, tree, "is 0 for every leaf", at)

        return ByPath(at, check)
    entries = leaves_with_paths(stacked)
    for path, entry in entries:
        _checked(entry, path, None)
    found = entry_for(stacked, "stacked")

    def at_entry(name: Path, leaf: jax.Array) -> int:
        return _checked(found(name, leaf), name, leaf)

    def check_each(tree: Any) -> None:
        for leaf in named_leaves(tree):
            at_entry(*leaf)
        check_entries("stacked", [path.keys for path, _ in entries], tree)

    return ByPath(at_entry, check_each)


def within_layers(axes_of: AxesOf, layers_of: StackedOf) -> AxesOf:
    """Return the function that applies another to one layer of each leaf, and returns axes of the whole leaf."""

    def axes_of_leaf(name: str, leaf: jax.Array) -> tuple[int, ...]:
        layers = layers_of(name, leaf)
        layer: Any = jax.ShapeDtypeStruct(leaf.shape[layers:], leaf.dtype)
        return tuple(axis + layers for axis in axes_of(name, layer))

    return axes_of_leaf


def _checked(entry: Any, name: str, leaf: Any) -> int:
    if not isinstance(entry, numbers.Integral) or entry < 0:
        injected = "; under inject_hyperparams, name stacked in static_args" if isinstance(entry, jax.Array) else ""
        msg = f"stacked must be the number of leading layer axes, at least 0; got {entry!r} for {name!r}{injected}"
        raise TypeError(msg)
    if leaf is not None and entry > leaf.ndim:
        msg = f"stacked={entry}, but {name!r} has shape {leaf.shape}, with fewer axes"
        raise ValueError(msg)
    return int(entry)
