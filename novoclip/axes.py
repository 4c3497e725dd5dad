"""Which axes of a leaf norms are taken over, and which mesh axes it is split over."""

from collections.abc import Callable, Sequence
import operator
from typing import Any

import jax

from novoclip.arguments import check_choice
from novoclip.paths import leaves_with_paths

LAYOUTS = ("flax", "tensorflow", "torch")

Axes = int | Sequence[int]
AxesOf = Callable[[str, jax.Array], tuple[int, ...]]


def resolve_axes(axes: Axes | str | Callable[[str, jax.Array], Axes]) -> AxesOf:
    """Return the function `axes(path, leaf)`, which gives sorted axes from 0, that the argument of `units` means."""
    if isinstance(axes, str):
        check_choice("axes", axes, LAYOUTS)
        return _all_but_first if axes == "torch" else _all_but_last
    fixed = () if callable(axes) else _integers(axes)

    def reduced(path: str, leaf: jax.Array) -> tuple[int, ...]:
        listed = _integers(axes(path, leaf)) if callable(axes) else fixed
        if any(not -leaf.ndim <= axis < leaf.ndim for axis in listed):
            msg = f"axes={listed} are not all axes of {path!r}, which has shape {leaf.shape}"
            raise ValueError(msg)
        return tuple(sorted({axis % leaf.ndim for axis in listed}))

    return reduced


def resolve_specs(specs: Any) -> dict[tuple[str, ...], Any]:
    """Return the PartitionSpec of each leaf, by the keys of its path."""
    spec = jax.sharding.PartitionSpec
    leaves = leaves_with_paths(specs, is_leaf=lambda node: isinstance(node, spec))
    for path, leaf in leaves:
        if not isinstance(leaf, spec):
            msg = f"specs must be a tree of PartitionSpecs; got {leaf!r} at {path!r}"
            raise TypeError(msg)
    return {path.keys: leaf for path, leaf in leaves}


def _integers(axes: Any) -> tuple[int, ...]:
    try:
        return tuple(operator.index(axis) for axis in (axes if isinstance(axes, Sequence) else (axes,)))
    except TypeError:
        msg = f"axes must be an integer, several, or a function of (path, leaf) that returns them; got {axes!r}"
        raise TypeError(msg) from None


def _all_but_last(_: str, leaf: jax.Array) -> tuple[int, ...]:
    return tuple(range(max(leaf.ndim - 1, min(leaf.ndim, 1))))


def _all_but_first(_: str, leaf: jax.Array) -> tuple[int, ...]:
    return tuple(range(min(1, max(leaf.ndim - 1, 0)), leaf.ndim))
