"""Values of slices of leaves, such as the norms of output units."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from novoclip.mesh import whole
from novoclip.origin import made_by, text_of
from novoclip.platforms import entries


class Slices(NamedTuple):
    """Values of slices of leaves.

    One vector of all of them would move parts between devices that hold leaves in parts, and an array for each leaf
    would make many small kernels.

    Attributes:
      arrays: for each shape that values of a leaf have, `(leaves of it, *shape)`; axes that were reduced have size 1.
      places: which leaves these are, counted from 0; it holds no array.
    """

    arrays: list[Any]
    places: Any


def groups_of(slices: Sequence[tuple[int, ...]], leaves: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Return the places of leaves whose slices have one shape, together; among these, those of leaves of one shape."""
    groups: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
    for i, (shape, leaf) in enumerate(zip(slices, leaves, strict=True)):
        groups.setdefault(tuple(shape), {}).setdefault(tuple(leaf), []).append(i)
    return [[i for places in group.values() for i in places] for group in groups.values()]


def in_groups(values: Mapping[tuple[int, ...], jax.Array], groups: Sequence[Sequence[int]], dtype: Any) -> Any:
    """Return the Slices of values of each leaf, those of a group stacked.

    Without leaves it is an empty vector: Optax looks for the arrays of a state by an `init` of no leaf.

    Args:
      values: by the place of a leaf, (place,), its values; by those of several, the stack of theirs.
      groups: the places of each group.
      dtype: that of the empty vector.
    """
    if not groups:
        return jnp.zeros((0,), dtype)
    text = "; ".join(" ".join(map(str, places)) for places in groups)
    return Slices([_stacked(values, places) for places in groups], made_by(text))


def by_leaf(slices: Any) -> list[jax.Array]:
    """Undo `in_groups`."""
    if not isinstance(slices, Slices):
        return []
    found: dict[int, jax.Array] = {}
    for array, places in zip(slices.arrays, places_of(slices), strict=True):
        found |= zip(places, entries(array), strict=True)
    return [found[i] for i in sorted(found)]


def places_of(slices: Slices) -> list[list[int]]:
    """Return for each array the leaves whose values it holds."""
    return [[int(place) for place in places.split(" ")] for places in text_of(slices.places).split("; ")]


def _stacked(values: Mapping[tuple[int, ...], jax.Array], places: Sequence[int]) -> jax.Array:
    """Return the stack; where explicit axis types split the values in several ways, each is made whole before."""
    rows = {place: (stack, row) for stack in values if len(stack) > 1 for row, place in enumerate(stack)}
    parts: list[jax.Array] = []
    rest = list(places)
    while rest:
        stack, row = rows.get(rest[0], ((rest[0],), 0))
        if len(stack) > 1 and tuple(rest[: len(stack)]) == stack:
            parts.append(values[stack])
            rest = rest[len(stack) :]
        else:
            parts.append(values[stack][None] if len(stack) == 1 else values[stack][row : row + 1])
            rest = rest[1:]
    splits = {str(jax.typeof(part).sharding.spec) for part in parts}
    return jnp.concatenate(parts if len(splits) == 1 else [whole(part) for part in parts])
