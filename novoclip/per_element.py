"""Limits per element: a state for each leaf, whose size is known before any of it is used."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from novoclip.leaves import is_measured
from novoclip.limits import Limit
from novoclip.measure import Measure

LARGE = 2**20  # elements that any state may have
UNITS = ("bytes", "kB", "MB", "GB", "TB")


def over_leaves(limit: Limit, measure: Measure) -> Limit:
    """Return the Limit that applies another to each array of norms, of which a Measure may give one or a tree.

    Its state holds, for each array of the other's state, one tree like that of the norms: per element one like the
    parameters, which is what sharding and checkpointing tools look for.

    Raises:
      ValueError: in `init`, if it would keep more copies of a tree of single numbers than the Measure allows.
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
            msg = f"the state does not fit {limit.name} per {measure.name}, or the gradients given to update: {error}"
            raise ValueError(msg) from error
        states = [state_tree.unflatten([column[i] for column in columns]) for i in range(len(leaves))]
        sizes = [None] * len(leaves) if param_norms is None else outer.flatten_up_to(param_norms)
        results = [limit.update(n, m, p, **extra) for n, m, p in zip(leaves, states, sizes, strict=True)]
        return outer.unflatten([limits for limits, _ in results]), regroup([m for _, m in results], outer)

    return limit._replace(init=init, update=update)


def _check_copies(limit: Limit, norms: Any, max_copies: int) -> None:
    """Raise a ValueError if a Limit would keep more than `max_copies` copies of a pytree of norms.

    Counted are arrays with more than one entry per element, such as a history: what has one is no larger than
    an optimizer's moments.
    """
    one: Any = jax.eval_shape(lambda: limit.init(jax.ShapeDtypeStruct((), jnp.float32)))
    arrays = jax.tree.leaves(one)
    copies = sum(array.size for array in arrays if array.size > 1)
    elements = sum(math.prod(norm.shape) for norm in jax.tree.leaves(norms))
    if elements and copies > max_copies:
        size = elements * sum(array.size * array.dtype.itemsize for array in arrays)
        msg = (
            f"per='element' keeps {copies} copies of the parameters here, {_readable(size)} for {elements} elements, "
            f"and at most {max_copies} are allowed: write a smaller window=, or allow them by "
            f"per=novoclip.elements(max_copies={copies})"
        )
        raise ValueError(msg)


def check_history(limit: Limit, norms: Any, params: Any, measure: Measure) -> None:
    """Raise a ValueError if the state of a Limit of blocks is both large and many copies of the parameters.

    Norms of elements are left to `over_leaves`.
    """
    if measure.elementwise:
        return
    elements = sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(params) if is_measured(leaf))
    arrays = jax.tree.leaves(jax.eval_shape(lambda: [limit.init(norm) for norm in jax.tree.leaves(norms)]))
    if sum(array.size for array in arrays) > max(measure.max_copies * elements, LARGE):
        size = sum(array.size * array.dtype.itemsize for array in arrays)
        number = sum(math.prod(norm.shape) for norm in jax.tree.leaves(norms))
        msg = (
            f"{limit.name} keeps {_readable(size)} for {number} norms of {elements} elements, over "
            f"{measure.max_copies} copies of the parameters: write a smaller window=, or take larger blocks"
        )
        raise ValueError(msg)


def _readable(size: float) -> str:
    power = min(int(math.log(size, 1000)), len(UNITS) - 1)
    return f"{size / 1000**power:.3g} {UNITS[power]}"
