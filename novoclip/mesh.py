"""Sums and maxima over all the devices that hold a part of a leaf, inside `jax.shard_map`.

There JAX records in the type of an array over which mesh axes its values vary. What does not vary is
the same on every device, and counted once. Under `pmap` and `check_vma=False` nothing is recorded, and
everything counts as the same on every device.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

Shards = tuple[tuple[str, ...], ...]  # for each axis of a leaf, the mesh axes that it is split over


def varying_axes(array: Any) -> tuple[str, ...]:
    """Return the mesh axes that an array's values vary over, in order."""
    kind = array if isinstance(array, jax.ShapeDtypeStruct) else jax.typeof(array)
    record = getattr(kind, "manual_axis_type", None)  # jax from 0.10 on; before, the axes stood in `vma`
    return tuple(sorted(record.varying if record is not None else getattr(kind, "vma", None) or ()))


def vary(array: jax.Array, like: Any) -> jax.Array:
    """Return the array, typed as varying over the mesh axes of another as well."""
    axes = tuple(axis for axis in varying_axes(like) if axis not in varying_axes(array))
    if not axes:
        return array
    names: Any = lax  # jax before 0.8 has only the older name
    return names.pcast(array, axes, to="varying") if hasattr(names, "pcast") else names.pvary(array, axes)


def zeros_like(leaf: Any, dtype: Any = None) -> jax.Array:
    """Return zeros of a leaf's shape, varying as it does; the leaf may be a ShapeDtypeStruct."""
    return vary(jnp.zeros(leaf.shape, dtype or leaf.dtype), leaf)


def shards(axes: Sequence[str]) -> int:
    """Return how many devices lie along these mesh axes."""
    return math.prod(lax.psum(1, axis) for axis in axes)


def global_size(array: Any) -> int:
    """Return how many numbers an array has on all devices together."""
    return jnp.size(array) * shards(varying_axes(array))


def across_devices(parts: list[jax.Array], combine: Callable[..., jax.Array]) -> list[jax.Array]:
    """Combine each scalar with those of the other devices, in one collective for each set of mesh axes."""
    collective = lax.pmax if combine is not jnp.sum else lax.psum
    alike: dict[tuple[str, ...], list[int]] = {}
    for i, part in enumerate(parts):
        alike.setdefault(varying_axes(part), []).append(i)
    whole = list(parts)
    for axes, members in alike.items():
        if axes:
            together = collective(jnp.stack([parts[i] for i in members]), axes)
            for place, i in enumerate(members):
                whole[i] = together[place]
    return whole


def shards_of(name: str, leaf: Any, spec: Any) -> Shards:
    """Return the mesh axes that each axis of a leaf is split over, by its PartitionSpec.

    Raises:
      ValueError: if the leaf varies over mesh axes that its PartitionSpec, or the lack of one, does not name.
    """
    varying = varying_axes(leaf)
    entries = tuple(spec or ()) + (None,) * (leaf.ndim - len(tuple(spec or ())))
    names = tuple(() if entry is None else (entry,) if isinstance(entry, str) else tuple(entry) for entry in entries)
    missing = set(varying) - {axis for axes in names for axis in axes}
    if missing:
        msg = (
            f"{name!r} is split over the mesh axes {sorted(missing)}, and nothing says which of its axes they split: "
            "give specs=, a tree of PartitionSpecs like the parameters"
        )
        raise ValueError(msg)
    return tuple(tuple(axis for axis in axes if axis in varying) for axes in names)


def whole_slices(part: jax.Array, axes: Sequence[int], split: Shards, combine: Callable[..., jax.Array]) -> jax.Array:
    """Return what is left of a leaf when `axes` were combined, for the whole leaf: each device holds a part of it."""
    reduced = tuple(name for axis in axes for name in split[axis])
    if reduced:
        part = (lax.psum if combine is jnp.sum else lax.pmax)(part, reduced)
    kept = [(axis, names) for axis, names in enumerate(split) if names and axis not in axes]
    if not kept:
        return part
    whole = jnp.zeros(_whole_shape(part.shape, axes, split), part.dtype)
    start: list[int | jax.Array] = [0] * part.ndim
    for axis, names in kept:
        start[axis] = _place(names) * part.shape[axis]
    # A sum with zeros, and not a gather, whose result is typed as varying.
    placed = lax.dynamic_update_slice(vary(whole, part), part, start)
    return lax.psum(placed, tuple(name for _, names in kept for name in names))


def own_slices(values: jax.Array, shape: Sequence[int], split: Shards) -> jax.Array:
    """Return this device's part, of the given shape, of slices of the whole leaf."""
    for axis, names in enumerate(split):
        if names and values.shape[axis] > 1:
            values = lax.dynamic_slice_in_dim(values, _place(names) * shape[axis], shape[axis], axis)
    return values


def _whole_shape(shape: Sequence[int], axes: Sequence[int], split: Shards) -> tuple[int, ...]:
    return tuple(size if axis in axes else size * shards(split[axis]) for axis, size in enumerate(shape))


def _place(names: Sequence[str]) -> jax.Array:
    place = jnp.zeros((), jnp.int32)
    for name in names:
        place = place * lax.psum(1, name) + lax.axis_index(name)
    return place
