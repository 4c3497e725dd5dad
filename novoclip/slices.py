"""Values of slices of leaves, such as the norms of output units."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from novoclip.alike import in_order
from novoclip.mesh import replicate
from novoclip.origin import made_by, text_of
from novoclip.platforms import entries


class Slices(NamedTuple):
    """Values of slices of leaves.

    One vector of all values would move data between devices that hold parts of leaves. One array for each leaf would
    make many small kernels.

    Attributes:
      arrays: for each shape of a leaf's values, an array `(leaves with that shape, *shape)`; reduced axes have size 1.
      places: the positions of these leaves, counted from 0; it holds no array.
    """

    arrays: list[Any]
    places: Any


def groups_of(shapes: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Return groups of positions of leaves whose slices have one shape, in the order in which the shapes first occur.

    The order of the groups, and of the positions in each, is part of the format of states.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, shape in enumerate(shapes):
        groups.setdefault(tuple(shape), []).append(i)
    return list(groups.values())


def in_groups(values: Mapping[tuple[int, ...], jax.Array], groups: Sequence[Sequence[int]], dtype: Any) -> Any:
    """Return the Slices of the values of each leaf, stacked within each group.

    Without leaves it is an empty vector, since Optax calls `init` without leaves to find the arrays of a state.

    Args:
      values: the values of each leaf, by its position as (position,), or a stack of values, by several positions.
      groups: the positions in each group.
      dtype: the dtype of the empty vector.
    """
    if not groups:
        return jnp.zeros((0,), dtype)
    text = "; ".join(" ".join(map(str, places)) for places in groups)
    return Slices([_stacked(values, places) for places in groups], made_by(text))


def by_leaf(slices: Any) -> list[jax.Array]:
    """Return the values of each leaf, the inverse of `in_groups`."""
    if not isinstance(slices, Slices):
        return []
    found: dict[int, jax.Array] = {}
    for array, places in zip(slices.arrays, places_of(slices), strict=True):
        found |= zip(places, entries(array), strict=True)
    return [found[i] for i in sorted(found)]


def places_of(slices: Slices) -> list[list[int]]:
    """Return for each array the positions of the leaves whose values it holds."""
    return [[int(place) for place in places.split(" ")] for places in text_of(slices.places).split("; ")]


def _stacked(values: Mapping[tuple[int, ...], jax.Array], places: Sequence[int]) -> jax.Array:
    """Return the stack. Values that explicit axis types shard in different ways are replicated before."""
    own = set(places)
    members = [stack for stack in values if stack[0] in own]
    parts = [values[stack] if len(stack) > 1 else values[stack][None] for stack in members]
    splits = {str(jax.typeof(part).sharding.spec) for part in parts}
    return in_order(parts if len(splits) == 1 else [replicate(part) for part in parts], members)
