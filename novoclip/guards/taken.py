"""A step of any optimizer that is taken or skipped, without a branch."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var, jaxpr_as_fun
import jax.numpy as jnp
import optax

from novoclip.leaves import is_measured, with_numbers
from novoclip.mesh import with_sharding_of


def apply_if(
    taken: jax.Array,
    run: Callable[[optax.Updates], tuple[Any, Any]],
    entering: optax.Updates,
    updates: optax.Updates,
    state: Any,
    *,
    finite: bool = False,
) -> tuple[optax.Updates, Any]:
    """Return run(entering) where the step is taken; else zero updates, and the state as it was.

    What is not finite is never computed with: unless `entering` is `finite`, a skipped step is computed of zeros. Each
    array of the new state is selected where it is computed, before updates are computed from it. Selected at the end,
    XLA would keep a copy.
    """
    known, structure = _flat(entering)
    places = [i for i, leaf in enumerate(known) if is_measured(leaf)]
    old, form = _flat(state)

    def step(*leaves: jax.Array) -> tuple[list[Any], list[Any]]:
        given = dict(zip(places, leaves, strict=True))
        sent, new = run(structure.unflatten([given.get(i, leaf) for i, leaf in enumerate(known)]))
        if _flat(new)[1] != form:
            msg = f"the optimizer inside changed its state from {form} to {_flat(new)[1]}"
            raise TypeError(msg)
        leaves_sent, form_sent = _flat(sent)
        shapes = [jnp.shape(leaves_sent[i]) for i in places] if form_sent == structure else None
        if shapes != [jnp.shape(known[i]) for i in places]:
            msg = "the optimizer inside returned updates of another structure, or of other shapes, than the gradients: "
            msg += f"{jax.tree.map(jnp.shape, sent)} for {jax.tree.map(jnp.shape, entering)}"
            raise TypeError(msg)
        return [leaves_sent[i] for i in places], jax.tree.leaves(new)

    def select(new: jax.Array, other: Any) -> jax.Array:
        # Some optimizers let a state take the gradients' dtype, or return a Python number.
        new, other = jnp.asarray(new), jnp.asarray(other)
        other = other if other.dtype == new.dtype else other.astype(new.dtype)
        return _selected(taken, new, with_sharding_of(other, new))

    def or_zeros(leaf: jax.Array) -> jax.Array:
        return _or_zeros(taken, leaf)

    gradients = [jnp.asarray(known[i]) for i in places]
    traced = jax.make_jaxpr(step)(*gradients)
    jaxpr = traced.jaxpr
    count = len(jaxpr.outvars) - len(old)
    computed = {var for eqn in jaxpr.eqns for var in eqn.outvars}
    kept: dict[Any, Any] = {}
    for var, leaf in zip(jaxpr.outvars[count:], old, strict=True):
        if isinstance(var, Var) and var in computed:
            kept.setdefault(var, leaf)
    given = gradients if finite else [or_zeros(leaf) for leaf in gradients]
    values = _evaluated(jaxpr, traced.consts, given, kept, select)
    sent = [or_zeros(value) for value in values[:count]]
    new = []
    for var, value, leaf in zip(jaxpr.outvars[count:], map(jnp.asarray, values[count:]), old, strict=True):
        # In the dtype of the old state, whose values another may not hold.
        alike = value.dtype == jnp.asarray(leaf).dtype
        done = alike and isinstance(var, Var) and kept.get(var) is leaf
        new.append(value if done else select(value if alike else value.astype(jnp.asarray(leaf).dtype), leaf))
    return with_numbers(updates, sent), form.unflatten(new)


# Under jit of their own: for leaves of one shape they are lowered once.
@jax.jit
def _selected(taken: jax.Array, new: jax.Array, other: jax.Array) -> jax.Array:
    return lax.select_n(taken, other, new)


@jax.jit
def _or_zeros(taken: jax.Array, leaf: jax.Array) -> jax.Array:
    return lax.select_n(taken, lax.full_like(leaf, 0), leaf)


def _evaluated(
    jaxpr: Jaxpr,
    constants: Sequence[Any],
    arguments: Sequence[Any],
    kept: Mapping[Var, Any],
    select: Callable[[jax.Array, Any], jax.Array],
) -> list[Any]:
    """Return what a program returns, with `select(value, kept[var])` in place of the values of some variables."""
    known = dict(zip(jaxpr.constvars, constants, strict=True)) | dict(zip(jaxpr.invars, arguments, strict=True))

    def read(var: Any) -> Any:
        return var.val if isinstance(var, Literal) else known[var]

    for part in _parts(jaxpr, kept):
        results = jaxpr_as_fun(ClosedJaxpr(part, ()))(*map(read, part.invars))
        outvars: Any = part.outvars
        for var, value in zip(outvars, results, strict=True):
            known[var] = select(value, kept[var]) if var in kept else value
    return [read(var) for var in jaxpr.outvars]


def _parts(jaxpr: Jaxpr, kept: Container[Any]) -> Iterator[Jaxpr]:
    """Cut a program after each equation that computes one of some variables."""
    parts: list[list[Any]] = [[]]
    for eqn in jaxpr.eqns:
        parts[-1].append(eqn)
        if any(var in kept for var in eqn.outvars):
            parts.append([])
    # From the last to the first, so that it is known what is needed after each.
    needed = {var for var in jaxpr.outvars if isinstance(var, Var)}
    found = []
    for eqns in reversed(parts):
        computed = dict.fromkeys(var for eqn in eqns for var in eqn.outvars)
        outvars = [var for var in computed if var in needed]
        used = dict.fromkeys(var for eqn in eqns for var in eqn.invars if isinstance(var, Var))
        invars = [var for var in used if var not in computed]
        needed.difference_update(computed)
        needed.update(invars)
        found.append(jaxpr.replace(constvars=(), invars=invars, outvars=outvars, eqns=eqns))
    return reversed(found)


def _flat(tree: Any) -> tuple[list[Any], Any]:
    return jax.tree.flatten(tree)
