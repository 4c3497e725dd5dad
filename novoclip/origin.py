"""What made a state, kept in the state's type: the state of one rule is never taken for that of another.

A state of arrays alone does not say which rule made it, and one rule's moments may have the shapes of another's. An
Origin is a NamedTuple without fields, whose class carries a sentence: it adds no array, and goes through jit, scan,
pickle and checkpoints as `optax.EmptyState` does. A checkpoint that is restored into the state of a new rule takes
on its Origin; there the shapes and the names of the arrays have to agree.
"""

import functools
from typing import Any, NamedTuple

import jax


class Origin(NamedTuple):
    """What made a state; `text` is an attribute of the class."""


@functools.cache
def _kind(text: str) -> Any:
    def reduce(_: Any) -> Any:
        return made_by, (text,)

    return type(text, (Origin,), {"__slots__": (), "text": text, "__reduce__": reduce})


def made_by(text: str) -> Any:
    """Return the Origin with this text; equal texts give equal types."""
    return _kind(text)()


def check_origin(state: Any, kind: Any, expected: Any) -> None:
    """Raise if a state is of another kind, or was made by something else; those of 0.1.0 do not say by what.

    Raises:
      ValueError: naming both.
    """
    if not isinstance(state, kind):
        msg = f"{text_of(expected)} needs a state of type {kind.__name__}; got {type(state).__name__}: call init again"
        raise ValueError(msg)
    if isinstance(state.origin, Origin) and type(state.origin) is not type(expected):
        msg = f"this state was made by {text_of(state.origin)}; it is no state of {text_of(expected)}: call init again"
        raise ValueError(msg)


def check_state(found: Any, expected: Any, owner: str) -> None:
    """Raise unless a state has the structure and the shapes of what `init` makes.

    Args:
      found: the state.
      expected: the same as `jax.eval_shape` of `init` gives it.
      owner: what it is the state of, for the message.

    Raises:
      ValueError: naming the array, its shape and the shape that was expected.
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
