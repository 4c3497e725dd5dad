"""Update the state of a Limit from finite norms only, in the precision of the state."""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax.extend.core import Literal
import jax.numpy as jnp
import numpy as np

from novoclip.leaves import narrow
from novoclip.limit import Limit, select_blocks
from novoclip.mesh import with_sharding_of
from novoclip.origin import check_state
from novoclip.ranges import limits_as, no_limit, without_infinity
from novoclip.written import computed_again, kept_apart, written_in_turn, written_out


def freeze_nonfinite(limit: Limit, *, elementwise: bool, floor: float | None = 0.0) -> Limit:
    """Return a Limit that keeps the state of a block whose norm is not finite or whose limit is NaN.

    Norms may be wider than the state, as with float64 gradients of float32 parameters. The Limit then gets them in the
    dtype of the state, and its limits are returned in the dtype of the norms. A state that was cast to 16 bits is
    widened for the update.

    A state may start as NaN, which means that nothing was learned yet: only an entry that becomes NaN later counts as
    not finite. While part of a block's state is NaN, a limit of NaN means no limit.

    Args:
      limit: the Limit.
      elementwise: whether norms are those of elements. Each array of the state then keeps its old value where the new
        one is NaN.
      floor: lower bound of the limits, in the units of the norms. None for no bound, as for losses below 0.
    """

    @functools.cache
    def expected(shape: tuple[int, ...]) -> Any:
        return jax.eval_shape(lambda: limit.init(jax.ShapeDtypeStruct(shape, jnp.float32)))

    @functools.cache
    def begins_as_nan() -> bool:
        return _has_nan(lambda: limit.init(jax.ShapeDtypeStruct((), jnp.float32)))

    def init(norms: Any) -> Any:
        state = limit.init(norms)
        for array in jax.tree.leaves(state):
            if array.shape[: len(norms.shape)] != norms.shape:
                msg = f"shapes in a Limit's state must begin with the norms' shape {norms.shape}; got {array.shape}"
                raise ValueError(msg)
        # Norms of elements have the sharding of the elements.
        return jax.tree.map(lambda array: with_sharding_of(array, norms), state)

    def update(norms: Any, state: Any, param_norms: Any = None, /, **extra: Any) -> tuple[Any, Any]:
        declared, given = expected(norms.shape), state
        check_state(state, declared, limit.name)
        state = without_infinity(jax.tree.map(_widened, state, declared))
        seen = norms.astype(_dtype_of(state, norms.dtype))
        finite = jnp.isfinite(seen)
        run = functools.partial(_apart if elementwise else _returned, limit)
        limits, learned = run(jnp.where(finite, seen, 0), state, param_norms, **extra)
        jax.tree.map(_check_unchanged, state, learned)
        if begins_as_nan():
            limits = jnp.where((_missing(state, norms) > 0) & jnp.isnan(limits), no_limit(limits.dtype), limits)
        known = finite & ~jnp.isnan(limits)
        if elementwise:
            # Each array has a mask of its own: XLA would write a common one to memory.
            learned = jax.tree.map(lambda new, old: jnp.where(jnp.isnan(new), old, new), learned, state)
        else:
            spoilt = _missing(learned, norms) > (_missing(state, norms) if begins_as_nan() else 0)
            known = known & ~spoilt
        limits = without_infinity(limits) if floor is None else jnp.maximum(without_infinity(limits), floor)
        kept = select_blocks(known, learned, state)
        if elementwise and jax.tree.leaves(state) and isinstance(norms, jax.core.Tracer):
            kept = _in_turn(limits, kept, state)
        return limits_as(limits, norms.dtype), jax.tree.map(_as_given, kept, given)

    return limit._replace(init=init, update=update)


def _widened(array: jax.Array, declared: Any) -> jax.Array:
    """Return an array in the dtype that `init` gave it, if it was cast to a dtype of fewer bits."""
    inexact = jnp.issubdtype(array.dtype, jnp.floating) and jnp.issubdtype(declared.dtype, jnp.floating)
    narrower = inexact and jnp.finfo(array.dtype).bits < jnp.finfo(declared.dtype).bits
    return array.astype(declared.dtype) if narrower else array


def _as_given(array: jax.Array, given: jax.Array) -> jax.Array:
    return array if array.dtype == given.dtype else narrow(array, given.dtype)


def _returned(limit: Limit, norms: Any, state: Any, param_norms: Any, /, **extra: Any) -> tuple[Any, Any]:
    """Return what a Limit returns, or raise an error that names it if that is not limits and a state as in `init`."""
    found = limit.update(norms, state, param_norms, **extra)
    wanted: Any = jax.tree.structure(state)
    if not isinstance(found, tuple | list) or len(found) != 2 or jax.tree.structure(found[1]) != wanted:
        msg = f"update of the Limit {limit.name} must return (limits, state), with a state {wanted} as in init; "
        msg += f"got {jax.tree.structure(found)}"
        raise ValueError(msg)
    return found[0], found[1]


def _apart(limit: Limit, norms: Any, state: Any, param_norms: Any, /, **extra: Any) -> tuple[Any, Any]:
    """Return what a Limit of elements does, traced twice. Otherwise XLA writes out what limits and state share."""
    limits, learned = _returned(limit, norms, state, param_norms, **extra)
    if not jax.tree.leaves(state) or not isinstance(norms, jax.core.Tracer):
        return limits, learned
    limits = written_out(jnp.broadcast_to(limits, norms.shape))
    return limits, limit.update(computed_again(norms), kept_apart(state), param_norms, **extra)[1]


def _in_turn(limits: jax.Array, new: Any, old: Any) -> Any:
    """Return the new state of elements. Its arrays are written in turn; moments depend on counters, which come last."""
    arrays, before = jax.tree.leaves(new), jax.tree.leaves(old)
    order = sorted(range(len(arrays)), key=lambda i: (jnp.issubdtype(arrays[i].dtype, jnp.integer), -i))
    found = dict(
        zip(order, written_in_turn(limits, [arrays[i] for i in order], [before[i] for i in order]), strict=True)
    )
    return jax.tree.unflatten(jax.tree.structure(new), [found[i] for i in range(len(arrays))])


def _floating(state: Any) -> list[jax.Array]:
    return [array for array in jax.tree.leaves(state) if jnp.issubdtype(array.dtype, jnp.floating)]


def _has_nan(init: Callable[[], Any]) -> bool:
    """Return whether a state begins with NaN somewhere. What depends on traced numbers is passed over."""
    # Read, where possible, and not computed: XLA takes 20 ms to compile each small program.
    traced = jax.make_jaxpr(init)()
    if all(eqn.primitive.name == "broadcast_in_dim" for eqn in traced.jaxpr.eqns):
        given = dict(zip(traced.jaxpr.constvars, traced.consts, strict=True))
        spread = {eqn.outvars[0]: eqn.invars[0] for eqn in traced.jaxpr.eqns}
        read = [var if isinstance(var, Literal) else spread.get(var, var) for var in traced.jaxpr.outvars]
        numbers = [var.val if isinstance(var, Literal) else given.get(var) for var in read]
    else:
        with jax.ensure_compile_time_eval():
            numbers = jax.tree.leaves(init())
    known = [number for number in numbers if number is not None and not isinstance(number, jax.core.Tracer)]
    floating = [number for number in known if jnp.issubdtype(jnp.result_type(number), jnp.floating)]
    return any(bool(np.isnan(np.asarray(number)).any()) for number in floating)


def _missing(state: Any, norms: jax.Array) -> jax.Array:
    """Return how many elements of each block's state are NaN."""
    missing = jnp.zeros(norms.shape, jnp.int32)
    for array in _floating(state):
        missing = missing + jnp.sum(jnp.isnan(array), axis=tuple(range(norms.ndim, array.ndim)), dtype=jnp.int32)
    return missing


def _dtype_of(state: Any, otherwise: Any) -> Any:
    floating = _floating(state)
    return floating[0].dtype if floating else otherwise


def _check_unchanged(old: jax.Array, new: jax.Array) -> None:
    if (new.shape, new.dtype) != (old.shape, old.dtype):
        msg = f"a Limit's update must keep dtypes and shapes, {old.dtype}{old.shape}; got {new.dtype}{new.shape}"
        raise ValueError(msg)
