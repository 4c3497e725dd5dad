"""The axes of a leaf that norms are taken over, and the mesh axes that it is sharded over."""

from collections.abc import Callable, Sequence
import operator
from typing import Any

import jax

from novoclip.arguments import check_choice
from novoclip.matching import ByPath, check_entries, check_function
from novoclip.paths import Path, leaves_with_paths

LAYOUTS = ("auto", "flax", "tensorflow", "torch")

Axes = int | Sequence[int]
AxesOf = Callable[[Any, jax.Array], tuple[int, ...]]


def resolve_axes(axes: Axes | str | Callable[[str, jax.Array], Axes]) -> AxesOf:
    """Return the function of (path, leaf) that returns the sorted axes, from 0, that `axes` of `units` stands for."""
    if isinstance(axes, str):
        check_choice("axes", axes, LAYOUTS)
        return {"auto": _all_but_outputs, "torch": _all_but_first}.get(axes, _all_but_last)
    fixed = () if callable(axes) else _integers(axes)

    def reduced(path: str, leaf: jax.Array) -> tuple[int, ...]:
        listed = _integers(axes(path, leaf)) if callable(axes) else fixed
        if any(not -leaf.ndim <= axis < leaf.ndim for axis in listed):
            msg = f"axes={listed} are not all axes of {path!r}, which has shape {leaf.shape}"
            raise ValueError(msg)
        return tuple(sorted({axis % leaf.ndim for axis in listed}))

    return reduced


def check_axes(axes: Any, axes_of: AxesOf, leaves: Sequence[tuple[Path, jax.Array]], tree: Any) -> None:
    """Raise a ValueError if `axes` is a function that reduces no axis of any of these leaves of a pytree."""
    if callable(axes):
        check_function(
            "axes", [(name, bool(axes_of(name, leaf))) for name, leaf in leaves], tree, "is () for every leaf", axes_of
        )


def resolve_specs(specs: Any) -> ByPath:
    """Return the PartitionSpec of each leaf: that of its path or of the nearest subtree above it, or None.

    Raises:
      TypeError: if `specs` holds anything but PartitionSpecs.
      ValueError: in `check`, if an entry matches no leaf.
    """
    spec = jax.sharding.PartitionSpec
    leaves = leaves_with_paths(specs, is_leaf=lambda node: isinstance(node, spec))
    for path, leaf in leaves:
        if not isinstance(leaf, spec):
            msg = f"specs must be a pytree of PartitionSpecs; got {leaf!r} at {path!r}"
            raise TypeError(msg)
    entries = {path.keys: leaf for path, leaf in leaves}

    def at(path: Path, _: jax.Array) -> Any:
        above = (path.keys[:end] for end in range(len(path.keys), -1, -1))
        return next((entries[keys] for keys in above if keys in entries), None)

    return ByPath(at, lambda tree: check_entries("specs", entries, tree))


def _integers(axes: Any) -> tuple[int, ...]:
    try:
        return tuple(operator.index(axis) for axis in (axes if isinstance(axes, Sequence) else (axes,)))
    except TypeError:
        msg = f"axes must be an integer, several, or a function of (path, leaf) that returns them; got {axes!r}"
        raise TypeError(msg) from None


def _all_but_outputs(path: str, leaf: jax.Array) -> tuple[int, ...]:
    return (_all_but_first if getattr(path, "outputs_first", False) else _all_but_last)(path, leaf)


def _all_but_last(_: str, leaf: jax.Array) -> tuple[int, ...]:
    return tuple(range(max(leaf.ndim - 1, min(leaf.ndim, 1))))


def _all_but_first(_: str, leaf: jax.Array) -> tuple[int, ...]:
    return tuple(range(min(1, max(leaf.ndim - 1, 0)), leaf.ndim))
