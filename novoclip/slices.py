"""Values of slices of leaves, such as the norms of output units."""

from collections.abc import Sequence
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


def in_groups(values: Sequence[jax.Array], shapes: Sequence[tuple[int, ...]], dtype: Any) -> Any:
    """Return the Slices of values of each leaf, those stacked whose slices have the same shape.

    Without leaves it is an empty vector: Optax looks for the arrays of a state by an `init` of no leaf.
    """
    if not values:
        return jnp.zeros((0,), dtype)
    alike: dict[tuple[int, ...], list[int]] = {}
    for i, shape in enumerate(shapes):
        alike.setdefault(tuple(shape), []).append(i)
    text = "; ".join(" ".join(map(str, places)) for places in alike.values())
    return Slices([_stacked([values[i] for i in places]) for places in alike.values()], made_by(text))


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


def _stacked(values: list[jax.Array]) -> jax.Array:
    """Return the stack; where explicit axis types split the values in several ways, each is made whole before."""
    splits = {str(jax.typeof(value).sharding.spec) for value in values}
    return jnp.stack(values if len(splits) == 1 else [whole(value) for value in values])
