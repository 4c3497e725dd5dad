"""Limits: how large each block may be at this step, from the norms and what was learned from them."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from novoclip.arguments import Schedulable, check_number, value_at
from novoclip.mesh import broadcast_like

UNNAMED = "a Limit"
NO_TRANSFORM = (
    "a Limit is one part of a rule, not a transform: in optax.chain write novoclip.clip('tree', limit) in its place. "
    "Called by itself, it takes norms and step=, as in limit.update(norms, state, step=step)"
)


class LimitUpdate(Protocol):
    """The second function of a Limit."""

    def __call__(
        self, norms: Any, state: Any, param_norms: Any = None, /, *, step: jax.Array, **extra: Any
    ) -> tuple[Any, Any]:
        """Return (limits, state)."""
        ...


class Limit(NamedTuple):
    """How large each block may be at this step: to norms, what an Optax transform is to gradients.

    A Limit sees norms and nothing else, so it serves every Measure, and can be run on a
    recorded list of norms. Norms are one float32 or float64 array: a scalar, a vector, or,
    with `per="element"`, each leaf's absolute values in turn, and with `per="unit"` the norms of all
    leaves whose norms have one shape, `(leaves, *shape)`, in turn. They are finite: `clip` puts
    0 where a norm is not, and discards what the Limit makes of that block. A norm of 0 is
    common (an embedding row that did not occur) and says nothing about the next one: a Limit
    that learns from it may hold the block near 0 for good.

    Attributes:
      init: `init(norms) -> state`, from a ShapeDtypeStruct. Each array of the state begins
        with the norms' shape, so that one block's state can stand still while the others move
        on, and a PartitionSpec of the norms fits it: a history of norms is `(*norms.shape, window)`.
      update: `update(norms, state, param_norms, /, *, step, **extra) -> (limits, state)`.
        `step` is an int32 scalar that counts from 0; `extra` is what else the caller gave
        to the transform's `update`. A limit below 0 counts as 0; a block whose limit is NaN
        is treated as one whose norm is not finite.
      needs_params: whether `param_norms`, norms of the same blocks of the parameters, are
        to be measured; they are None otherwise.
      name: what error messages call it, with what its state depends on: a state made under another is refused.
      signed: whether it also works for negative numbers, such as losses.
      needs_total: whether `update` is to be given `total=`, the Euclidean norm of the norms of all blocks, where
        it sees those of one leaf at a time, as with `per="unit"`.
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
    """Return a Limit that says what to write where it stands in place of a transform.

    Optax takes it for one, since it asks for no type. Only called as a transform is, with a pytree of parameters
    or without `step`, it can tell.
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


def constant(value: Schedulable, *, name: str = "value") -> Limit:
    """Limit every block to a number, or to a schedule's value at this step.

    Args:
      value: at least 0, in the gradients' units: a float, an array (a scalar, or, but for units and
        elements, a vector with an entry a block), or a schedule `step -> value`, which counts every update of the
        rule, from 0.
      name: what error messages call the value.

    Returns:
      A Limit without state.

    Raises:
      TypeError: if `value` is neither a real number, an array nor a function.
      ValueError: if it is negative or NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> limits, _ = constant(0.5).update(jnp.array([1.0, 2.0]), (), step=jnp.int32(0))
      >>> print(limits)
      [0.5 0.5]
    """
    check_number(name, value)

    def update(norms: Any, state: Any, param_norms: Any = None, /, *, step: jax.Array, **extra: Any) -> tuple[Any, Any]:
        del param_norms, extra
        return value_at(value, step, norms, name), state

    return make_limit(lambda _: (), update, name="constant", signed=True)


def tighter(*limits: Limit) -> Limit:
    """Limit each block to the least of several limits.

    Each learns from the norms as if it were alone.

    Args:
      limits: two Limits or more.

    Returns:
      A Limit whose state is a tuple of theirs.

    Raises:
      TypeError: if one is no Limit.
      ValueError: if there are fewer than two.

    Example:
      >>> import jax.numpy as jnp
      >>> limit = tighter(constant(3.0), constant(1.0))
      >>> print(limit.update(jnp.array(2.0), limit.init(jnp.zeros(())), step=jnp.int32(0))[0])
      1.0
    """
    for limit in limits:
        if not isinstance(limit, Limit):
            msg = f"limits must be Limits, such as constant(1.0); got {limit!r}"
            raise TypeError(msg)
    if len(limits) < 2:
        msg = f"limits must be two or more; got {len(limits)}"
        raise ValueError(msg)

    def update(norms: Any, state: Any, param_norms: Any = None, /, **extra: Any) -> tuple[Any, Any]:
        results = [limit.update(norms, part, param_norms, **extra) for limit, part in zip(limits, state, strict=True)]
        return functools.reduce(jnp.minimum, [bound for bound, _ in results]), tuple(part for _, part in results)

    return make_limit(
        lambda norms: tuple(limit.init(norms) for limit in limits),
        update,
        needs_params=any(limit.needs_params for limit in limits),
        name=f"tighter({', '.join(limit.name for limit in limits)})",
        signed=all(limit.signed for limit in limits),
        needs_total=any(limit.needs_total for limit in limits),
    )


def name_of(limit: Limit) -> str:
    """Return what a Limit is called: one without a name is called after its functions."""
    if limit.name != UNNAMED:
        return limit.name
    name = getattr(limit.update, "__qualname__", type(limit.update).__name__)
    return f"{UNNAMED} ({getattr(limit.update, '__module__', '')}.{name})"


def select_blocks(condition: jax.Array, new: Any, old: Any) -> Any:
    """Return the state that is `new` for the blocks where the condition holds, else `old`."""

    def each(a: jax.Array, b: jax.Array) -> jax.Array:
        blocks = jnp.expand_dims(condition, tuple(range(condition.ndim, b.ndim)))
        return jnp.where(broadcast_like(blocks, b), a, b)

    return jax.tree.map(each, new, old)
