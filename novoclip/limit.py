"""The Limit type: the limit of each block at each step, from the norms and a state learned from them."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from novoclip.mesh import broadcast_like

UNNAMED = "a Limit"
NO_TRANSFORM = (
    "a Limit is one part of a rule, not a transform: in optax.chain, write novoclip.clip_by_limit('tree', limit) "
    "instead of limit. To call the Limit itself, pass norms and step=: limit.update(norms, state, step=step)"
)


class LimitUpdate(Protocol):
    """The type of a Limit's `update` function."""

    def __call__(
        self, norms: Any, state: Any, param_norms: Any = None, /, *, step: jax.Array, **extra: Any
    ) -> tuple[Any, Any]:
        """Return (limits, state)."""
        ...


class Limit(NamedTuple):
    """The limit of each block at each step: two functions of norms, as an Optax transform has two of gradients.

    A Limit sees norms and never gradients. It therefore works with every Measure, and can be run on a recorded series
    of norms.

    Norms are one float32 or float64 array with one entry per block, a scalar for the tree and a vector per tensor or
    group, and `update` computes each limit from the entry at its place. With `per="element"`, `update` is called for
    each leaf, or under jit for each shape of a leaf, with the absolute values; it must be a pure function, and may be
    traced twice. With `per="unit"`, it is called once for all leaves whose norms have the same shape, with an array
    `(leaves, *shape)`. A limit of infinity is none.

    Norms are finite: `clip_by_limit` replaces a norm that is not finite by 0, and discards the result for that block. A
    norm of 0 is common, such as that of an embedding row that is not in the batch, and says nothing about the next
    norm. A Limit that learns from norms of 0 may keep a block near 0 permanently.

    Attributes:
      init: `init(norms) -> state`, from a ShapeDtypeStruct. The shape of each array of the state begins with the shape
        of the norms: a history of norms has the shape `(*norms.shape, window)`. The state of each block can then be
        kept or replaced separately, and a PartitionSpec of the norms fits the state.
      update: `update(norms, state, param_norms, /, *, step, **extra) -> (limits, state)`. `step` is an int32 scalar
        that counts from 0; `extra` holds the further keyword arguments of the transform's `update`. A limit below 0
        counts as 0. A block whose limit is NaN is treated as one whose norm is not finite.
      needs_params: whether `update` needs `param_norms`, the norms of the same blocks of the parameters. They are None
        otherwise.
      name: the name in error messages, with the arguments that the state depends on. A rule refuses a state that was
        made under another name.
      signed: whether the Limit also works for values below 0, such as losses.
      needs_total: whether `update` needs `total=`, the Euclidean norm of the norms of all blocks. It is only passed
        where one call does not see all blocks, as with `per="unit"`.
    """

    init: Callable[[Any], Any]
    update: LimitUpdate
    needs_params: bool = False
    name: str = UNNAMED
    signed: bool = False
    needs_total: bool = False


def make_limit(
    init: Callable[[Any], Any],
    update: LimitUpdate,
    *,
    name: str,
    needs_params: bool = False,
    signed: bool = False,
    needs_total: bool = False,
) -> Limit:
    """Return a Limit that raises a TypeError with instructions when it is used as an Optax transform.

    `optax.chain` accepts a Limit, since it does not check types. The error is raised when a function of the Limit is
    called like that of a transform: with a pytree of parameters, or without `step`.
    """

    def of_norms(norms: Any) -> Any:
        if not hasattr(norms, "shape"):
            raise TypeError(NO_TRANSFORM)
        return init(norms)

    def at_a_step(norms: Any, state: Any, param_norms: Any = None, /, **extra: Any) -> tuple[Any, Any]:
        if "step" not in extra:
            raise TypeError(NO_TRANSFORM)
        return update(norms, state, param_norms, **extra)

    return Limit(of_norms, at_a_step, needs_params, name, signed, needs_total)


def name_of(limit: Limit) -> str:
    """Return the name of a Limit for error messages; one without a name is named after its update function."""
    if limit.name != UNNAMED:
        return limit.name
    name = getattr(limit.update, "__qualname__", type(limit.update).__name__)
    return f"{UNNAMED} ({getattr(limit.update, '__module__', '')}.{name})"


def select_blocks(condition: jax.Array, new: Any, old: Any) -> Any:
    """Return the state `new` for the blocks where the condition holds, and `old` for the others."""

    def each(a: jax.Array, b: jax.Array) -> jax.Array:
        blocks = jnp.expand_dims(condition, tuple(range(condition.ndim, b.ndim)))
        return jnp.where(broadcast_like(blocks, b), a, b)

    return jax.tree.map(each, new, old)
