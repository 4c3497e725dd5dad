"""Limits for several arrays of norms, as per element: a state for each array, and a check of its total size."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from novoclip.leaves import is_measured
from novoclip.limit import Limit
from novoclip.measure import Measure

LARGE = 2**20  # a state with at most this many elements is never refused
UNITS = ("bytes", "kB", "MB", "GB", "TB")


def over_leaves(limit: Limit, measure: Measure) -> Limit:
    """Return a Limit that applies another one to each array of norms, if a Measure returns several.

    A Measure returns one array or a pytree of them. For each array in the state of the given Limit, the new state holds
    a pytree like the norms. Per element it is a pytree like the parameters, which sharding and checkpointing tools
    recognize.

    Raises:
      ValueError: in `init`, if per element the state has more copies of the parameters than the Measure allows.
    """
    state_tree: Any = jax.tree.structure(limit.init(jax.ShapeDtypeStruct((), jnp.float32)))

    def regroup(states: list[Any], outer: Any) -> Any:
        columns = zip(*(state_tree.flatten_up_to(state) for state in states), strict=True)
        trees = (
            [outer.unflatten(column) for column in columns] if states else [outer.unflatten([])] * state_tree.num_leaves
        )
        return state_tree.unflatten(trees)

    def init(norms: Any) -> Any:
        if measure.elementwise:
            _check_copies(limit, norms, measure.max_copies)
        leaves = jax.tree.leaves(norms)
        outer: Any = jax.tree.structure(norms)
        return regroup([limit.init(leaf) for leaf in leaves], outer)

    def update(norms: Any, state: Any, param_norms: Any = None, /, **extra: Any) -> tuple[Any, Any]:
        leaves = jax.tree.leaves(norms)
        outer: Any = jax.tree.structure(norms)
        try:
            columns = [outer.flatten_up_to(tree) for tree in state_tree.flatten_up_to(state)]
        except ValueError as error:
            msg = (
                f"the state does not fit {limit.name} per {measure.name}, or the gradients given to update: "
                f"call init with the parameters of these gradients. {error}"
            )
            raise ValueError(msg) from error
        states = [state_tree.unflatten([column[i] for column in columns]) for i in range(len(leaves))]
        sizes = [None] * len(leaves) if param_norms is None else outer.flatten_up_to(param_norms)
        run: Any = functools.partial(limit.update, **extra)
        if len(leaves) > 1 and any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            # So arrays of one shape are traced once. Outside of jit, this would be compiled at every call.
            run = jax.jit(run)
        results = [run(n, m, p) for n, m, p in zip(leaves, states, sizes, strict=True)]
        return outer.unflatten([limits for limits, _ in results]), regroup([m for _, m in results], outer)

    return limit._replace(init=init, update=update)


def _check_copies(limit: Limit, norms: Any, max_copies: int) -> None:
    """Raise a ValueError if a Limit would keep more than `max_copies` copies of a pytree of norms.

    Only arrays with more than one entry per element count, such as a history. An array with one entry per element is no
    larger than an optimizer's moments.
    """
    one: Any = jax.eval_shape(lambda: limit.init(jax.ShapeDtypeStruct((), jnp.float32)))
    arrays = jax.tree.leaves(one)
    copies = sum(array.size for array in arrays if array.size > 1)
    elements = sum(math.prod(norm.shape) for norm in jax.tree.leaves(norms))
    if elements and copies > max_copies:
        size = elements * sum(array.size * array.dtype.itemsize for array in arrays)
        msg = (
            f"per='element' keeps {copies} copies of the parameters here, {_readable(size)} for {elements} elements, "
            f"but at most {max_copies} are allowed: write a smaller window=, or "
            f"per=novoclip.elements(max_copies={copies})"
        )
        raise ValueError(msg)


def check_history(limit: Limit, norms: Any, params: Any, measure: Measure) -> None:
    """Raise a ValueError if the state of a Limit is both large and many times the size of the parameters.

    Norms of elements are checked by `over_leaves`.
    """
    if measure.elementwise:
        return
    elements = sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(params) if is_measured(leaf))
    arrays = jax.tree.leaves(jax.eval_shape(lambda: [limit.init(norm) for norm in jax.tree.leaves(norms)]))
    if sum(array.size for array in arrays) > max(measure.max_copies * elements, LARGE):
        size = sum(array.size * array.dtype.itemsize for array in arrays)
        number = sum(math.prod(norm.shape) for norm in jax.tree.leaves(norms))
        msg = (
            f"{limit.name} keeps {_readable(size)} for {number} norms of {elements} elements, more than "
            f"{measure.max_copies} copies of the parameters: write a smaller window=, or a per= with larger blocks"
        )
        raise ValueError(msg)


def _readable(size: float) -> str:
    power = min(int(math.log(size, 1000)), len(UNITS) - 1)
    return f"{size / 1000**power:.3g} {UNITS[power]}"
