"""The origin of a state, kept in its type, so that the state of one rule is not used by another.

The arrays of a state do not show which rule made it, and the moments of one rule may have the shapes of another's. An
Origin is a NamedTuple without fields, whose class holds a text. It adds no array, and passes through jit, scan, pickle
and checkpoints as `optax.EmptyState` does. A checkpoint that is restored into the state of another rule gets the Origin
of that rule; then only the shapes and the names of the arrays are compared.
"""

import functools
from typing import Any, NamedTuple

import jax


class Origin(NamedTuple):
    """The origin of a state; `text` is an attribute of the class."""


@functools.cache
def _kind(text: str) -> Any:
    def reduce(_: Any) -> Any:
        return made_by, (text,)

    return type(text, (Origin,), {"__slots__": (), "text": text, "__reduce__": reduce})


def made_by(text: str) -> Any:
    """Return the Origin with this text; equal texts give equal types."""
    return _kind(text)()


def check_origin(state: Any, kind: Any, expected: Any) -> None:
    """Raise if a state is of another kind, or was made by another rule. States of 0.1.0 have no Origin.

    Raises:
      ValueError: with both origins.
    """
    if not isinstance(state, kind):
        msg = f"{text_of(expected)} needs a state of type {kind.__name__}; got {type(state).__name__}: call init again"
        raise ValueError(msg)
    if isinstance(state.origin, Origin) and type(state.origin) is not type(expected):
        msg = f"this state was made by {text_of(state.origin)}, and not by {text_of(expected)}: call init again"
        raise ValueError(msg)


def check_state(found: Any, expected: Any, owner: str) -> None:
    """Raise unless a state has the structure and the shapes of what `init` makes.

    Args:
      found: the state.
      expected: the result of `jax.eval_shape` of `init`.
      owner: the rule, for the message.

    Raises:
      ValueError: with the array, its shape and the expected shape.
    """
    structure: Any = jax.tree.structure(found)
    if structure != jax.tree.structure(expected):
        msg = f"the state does not fit {owner}: it holds {_names(found)}, where {_names(expected)} is expected: "
        msg += "it was made by another rule, or by this one with other arguments; call init again"
        raise ValueError(msg)
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        if one.shape != other.shape:
            name = jax.tree_util.keystr(path, simple=True, separator="/") or "an array"
            msg = f"the state does not fit {owner}: {name} has shape {one.shape}, where {other.shape} is expected: "
            msg += "it was made by another rule, or by this one with other arguments; call init again"
            raise ValueError(msg)


def _names(state: Any) -> str:
    return type(state).__name__ if jax.tree.leaves(state) else "nothing"


def text_of(origin: Any) -> str:
    """Return the text of an Origin."""
    return getattr(type(origin), "text", "something unknown")
