"""Paths of leaves: "a/b/kernel" for messages and functions, and the keys by which leaves differ."""

from collections.abc import Callable, Iterable
from typing import Any

import jax

# Of equinox.nn, with weights (outputs, inputs, ...); others hold such layers, or vectors.
LAYERS = frozenset({"Conv", "ConvTranspose", "Embedding", "GRUCell", "LSTMCell", "Linear"})
AT_MOST = 4  # how many paths an error message lists


class Path(str):
    """The path of a leaf, "a/b/kernel".

    Attributes:
      keys: its parts. The paths in {"a": {"b": x}} and {"a/b": x} are equal, but their keys differ.
      outputs_first: whether it is the weight of a layer of Equinox, whose first axis is that of the outputs.
    """

    keys: tuple[str, ...]
    outputs_first: bool = False


def make_path(keys: Iterable[Any]) -> Path:
    """Return the Path of a tuple of JAX's keys."""
    parts = tuple(jax.tree_util.keystr((key,), simple=True) for key in keys)
    path = Path("/".join(parts))
    path.keys = parts
    return path


def leaves_with_paths(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[Path, Any]]:
    """Return a pytree's leaves with their paths, without the ".value" of Flax's nnx Variables."""
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    variables: set[Any] = set()
    if any(keys and keys[-1] == jax.tree_util.GetAttrKey("value") for keys, _ in found):
        outer = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_variable)
        variables = {keys for keys, node in outer if _is_variable(node)}
    layers: set[Any] = set()
    if any(isinstance(key, jax.tree_util.GetAttrKey) for keys, _ in found for key in keys):
        outer = jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_equinox_layer)
        layers = {keys for keys, node in outer if _is_equinox_layer(node)}
    named = [(make_path(keys[:-1] if keys[:-1] in variables else keys), leaf) for keys, leaf in found]
    for (path, _), (keys, _) in zip(named, found, strict=True):
        path.outputs_first = any(keys[:end] in layers for end in range(len(keys)))
    return named


def is_function(argument: Any) -> bool:
    """Whether an argument is a function: as in Optax, whether all its leaves are callable; a function is its own leaf.

    A module with `__call__` is a pytree of its arrays, not a function.
    """
    leaves = jax.tree.leaves(argument)
    return bool(leaves) and all(map(callable, leaves))


def some_of(paths: Iterable[str]) -> str:
    """Return some paths for an error message."""
    names = [repr(str(path)) for path in paths]
    return ", ".join(names[:AT_MOST]) + (" and so on" if len(names) > AT_MOST else "") if names else "no leaf"


def check_distinct(argument: str, paths: Iterable[str]) -> None:
    """Raise if two leaves have the same path, as a function of paths cannot distinguish them."""
    seen: set[str] = set()
    for path in paths:
        if str(path) in seen:
            msg = f"{argument} is a function of paths, but two leaves have the path {str(path)!r}: rename one"
            raise ValueError(msg)
        seen.add(str(path))


def entry_for(prefix: Any, argument: str) -> Callable[[Any, Any], Any]:
    """Return the function of (path, leaf) that finds the entry in a pytree that is a prefix of the parameters.

    Raises:
      ValueError: when it is called, if there is no entry for the leaf.
    """
    entries = {path.keys: entry for path, entry in leaves_with_paths(prefix)}

    def find(path: Any, _: Any) -> Any:
        # An entry holds for all leaves below its path.
        for end in range(len(path.keys), -1, -1):
            if path.keys[:end] in entries:
                return entries[path.keys[:end]]
        names = ["/".join(keys) for keys in entries]
        msg = f"{argument} has no entry for {str(path)!r}; its entries are for {some_of(names)}"
        raise ValueError(msg)

    return find


def _is_equinox_layer(node: Any) -> bool:
    return any(kind.__module__.startswith("equinox.nn") and kind.__name__ in LAYERS for kind in type(node).__mro__)


def _is_variable(node: Any) -> bool:
    # By name, since Flax need not be installed.
    return any(kind.__name__ == "Variable" and kind.__module__.startswith("flax.nnx") for kind in type(node).__mro__)
