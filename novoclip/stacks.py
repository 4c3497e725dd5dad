"""Which leaves stack several layers along their leading axes, as Flax's `nn.scan` does."""

from collections.abc import Callable
import numbers
from typing import Any

import jax

from novoclip.leaves import path_name

Stacked = Any  # an integer, a function of (path, leaf), or a tree of integers that is a prefix of the parameters
StackedOf = Callable[[str, jax.Array], int]


def resolve_stacked(stacked: Stacked) -> StackedOf:
    """Return the function `stacked(path, leaf)` that says how many leading axes of a leaf count layers.

    Raises:
      TypeError: if `stacked` holds something that is no integer. In use: if it returns such.
      ValueError: in use, if a leaf has fewer axes.
    """
    if callable(stacked):
        return lambda name, leaf: _checked(stacked(name, leaf), name, leaf)
    entries = {path_name(path): entry for path, entry in jax.tree_util.tree_leaves_with_path(stacked)}
    for name, entry in entries.items():
        _checked(entry, name, None)

    def count(name: str, leaf: jax.Array) -> int:
        # A prefix: an entry holds for all leaves below its path.
        parts = name.split("/")
        found = [entries[key] for key in ("/".join(parts[:end]) for end in range(len(parts), -1, -1)) if key in entries]
        return _checked(found[0] if found else 0, name, leaf)

    return count


def _checked(entry: Any, name: str, leaf: Any) -> int:
    if not isinstance(entry, numbers.Integral) or entry < 0:
        injected = "; under inject_hyperparams, name stacked in static_args" if isinstance(entry, jax.Array) else ""
        msg = f"stacked must say how many leading axes count layers; got {entry!r} for {name!r}{injected}"
        raise TypeError(msg)
    if leaf is not None and entry > leaf.ndim:
        msg = f"stacked={entry}, but {name!r} has shape {leaf.shape}"
        raise ValueError(msg)
    return int(entry)
