"""Which leaves stack several layers along their leading axes, as Flax's `nn.scan` does."""

from collections.abc import Callable
import numbers
from typing import Any

import jax

from novoclip.axes import AxesOf
from novoclip.paths import entry_for, is_function, leaves_with_paths

Stacked = Any  # an integer, a function of (path, leaf), or a tree of integers that is a prefix of the parameters
StackedOf = Callable[[str, jax.Array], int]


def resolve_stacked(stacked: Stacked) -> StackedOf:
    """Return the function `stacked(path, leaf)` that says how many leading axes of a leaf count layers.

    Raises:
      TypeError: if `stacked` holds something that is no integer. In use: if it returns such.
      ValueError: in use, if a leaf has fewer axes, or no entry in a tree.
    """
    function = is_function(stacked)
    if not function:
        for path, entry in leaves_with_paths(stacked):
            _checked(entry, path, None)
    count = stacked if function else entry_for(stacked, "stacked")
    return lambda name, leaf: _checked(count(name, leaf), name, leaf)


def within_layers(axes_of: AxesOf, layers_of: StackedOf) -> AxesOf:
    """Return the function that applies another to a layer of each leaf, and counts its axes in the whole leaf."""

    def axes_of_leaf(name: str, leaf: jax.Array) -> tuple[int, ...]:
        layers = layers_of(name, leaf)
        layer: Any = jax.ShapeDtypeStruct(leaf.shape[layers:], leaf.dtype)
        return tuple(axis + layers for axis in axes_of(name, layer))

    return axes_of_leaf


def _checked(entry: Any, name: str, leaf: Any) -> int:
    if not isinstance(entry, numbers.Integral) or entry < 0:
        injected = "; under inject_hyperparams, name stacked in static_args" if isinstance(entry, jax.Array) else ""
        msg = f"stacked must say how many leading axes count layers; got {entry!r} for {name!r}{injected}"
        raise TypeError(msg)
    if leaf is not None and entry > leaf.ndim:
        msg = f"stacked={entry}, but {name!r} has shape {leaf.shape}"
        raise ValueError(msg)
    return int(entry)
