"""A step that is taken or left out."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
import jax.numpy as jnp
import optax

from novoclip.leaves import is_measured, with_numbers
from novoclip.mesh import with_sharding_of, zeros_like
from novoclip.platforms import one_of


def apply_if(
    condition: jax.Array,
    run: Callable[[optax.Updates], tuple[Any, Any]],
    entering: optax.Updates,
    updates: optax.Updates,
    state: Any,
    otherwise: Callable[[], jax.Array] = lambda: jnp.zeros((0,), bool),
) -> tuple[optax.Updates, Any, jax.Array]:
    """Return run(entering) where the condition holds; else zero updates, and the state as it was.

    The third result is otherwise() where the condition does not hold, and zeros of its shape where it does.
    """
    known, structure = _flat(entering)
    places = [i for i, leaf in enumerate(known) if is_measured(leaf)]

    def numbers(*leaves: jax.Array) -> tuple[list[jax.Array], Any]:
        given = dict(zip(places, leaves, strict=True))
        sent, new = run(structure.unflatten([given.get(i, leaf) for i, leaf in enumerate(known)]))
        # Some optimizers let a state take the gradients' dtype.
        new = jax.tree.map(lambda a, b: a.astype(b.dtype) if hasattr(b, "dtype") else a, new, state)
        return [leaf for leaf in jax.tree.leaves(sent) if is_measured(leaf)], new

    gradients = [jnp.asarray(known[i]) for i in places]
    # Within one trace it is traced once, for all the ways in which it may be run. What it closes over becomes
    # arguments: JAX's caches would keep constants, a copy of the model and its state for each call outside jit.
    traced, shapes = jax.make_jaxpr(numbers, return_shape=True)(*gradients)
    jaxpr, constants = traced.jaxpr, traced.consts
    _, outcome = _flat(shapes)
    program = jax.jit(lambda constants, *leaves: jaxpr_as_fun(ClosedJaxpr(jaxpr, constants))(*leaves))

    def step(*leaves: jax.Array) -> Any:
        return outcome.unflatten(program(constants, *leaves))

    def taken(*leaves: jax.Array) -> tuple[list[jax.Array], Any, jax.Array]:
        return *step(*leaves), zeros_like(jax.eval_shape(otherwise))

    def skipped(*_: jax.Array) -> tuple[list[jax.Array], Any, jax.Array]:
        sent, new = shapes
        return [zeros_like(leaf) for leaf in sent], jax.tree.map(with_sharding_of, state, new), otherwise()

    # What is not finite is never computed with.
    sent, new, found = one_of(condition, taken, skipped, *gradients)
    return with_numbers(updates, sent), new, found


def _flat(tree: Any) -> tuple[list[Any], Any]:
    return jax.tree.flatten(tree)
