"""Which block each leaf belongs to, and the way from values of blocks back to leaves."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from novoclip.mesh import Shards, own_slices, shards
from novoclip.platforms import entries, pieces
from novoclip.ranges import common_dtype


class Layout(NamedTuple):
    """Which block each leaf belongs to. Hashable, so that it can be static under jit.

    Attributes:
      block_of: the block of each leaf, counted from 0 in order of first occurrence.
      axes: the axes of each leaf that its norm is taken over.
      form: what the norms become: one "scalar"; a vector with an entry a block
        ("stack"); or one with an entry for each slice that is left of a leaf ("concatenate").
      over: for the first two forms, the mesh axes that each leaf is split over.
      shards: for "concatenate", the mesh axes that each axis of each leaf is split over.
    """

    block_of: tuple[int, ...]
    axes: tuple[tuple[int, ...], ...]
    form: str
    over: tuple[tuple[str, ...], ...] = ()
    shards: tuple[Shards, ...] = ()


def block_count(layout: Layout) -> int:
    """Return how many blocks there are, where leaves belong to blocks as wholes."""
    return max(layout.block_of, default=-1) + 1


def block_counts(leaves: list[jax.Array], layout: Layout) -> Any:
    """Return how many numbers each block holds, in the form of the norms."""
    dtype = common_dtype(leaves)
    sizes = [math.prod(leaf.shape[axis] for axis in axes) for leaf, axes in zip(leaves, layout.axes, strict=True)]
    if layout.form == "concatenate":
        along = [shards([name for axis in axes for name in split[axis]]) for axes, split in split_axes(layout)]
        slices = [math.prod(shape) for shape in _slice_shapes(leaves, layout)]
        return jnp.asarray(np.repeat([float(max(a * b, 1)) for a, b in zip(sizes, along, strict=True)], slices), dtype)
    counts = [0.0] * block_count(layout)  # not integers, which end at 2^31
    for block, size, axes in zip(layout.block_of, sizes, layout.over, strict=True):
        counts[block] += size * shards(axes)
    return jnp.asarray(np.maximum(counts, 1.0) if layout.form == "stack" else max([1.0, *counts]), dtype)


def split_axes(layout: Layout) -> list[tuple[tuple[int, ...], Shards]]:
    """Return for each leaf its axes that are reduced, and the mesh axes that each of its axes is split over."""
    return list(zip(layout.axes, layout.shards, strict=True))


def split(values: jax.Array, leaves: list[jax.Array], layout: Layout) -> list[jax.Array]:
    """Undo `_combined`: for each leaf its block's value, of a shape that broadcasts to the leaf."""
    return [part[..., 0] for part in split_several(values[..., None], leaves, layout)]


def split_several(values: jax.Array, leaves: list[jax.Array], layout: Layout) -> list[jax.Array]:
    """Do the same with several values for each block, in the last axis."""
    if layout.form == "scalar":
        return [values] * len(leaves)
    if layout.form == "stack":
        rows = entries(values)
        return [rows[block] for block in layout.block_of]
    shapes = _slice_shapes(leaves, layout)
    slices = pieces(values, [math.prod(shape) for shape in shapes])
    parts = [part.reshape(*shape, -1) for part, shape in zip(slices, shapes, strict=True)]
    return [own_slices(part, leaf.shape, over) for part, leaf, over in zip(parts, leaves, layout.shards, strict=True)]


def _slice_shapes(leaves: list[jax.Array], layout: Layout) -> list[tuple[int, ...]]:
    """Return the whole leaves' shapes with 1 in place of each reduced axis."""
    return [
        tuple(1 if axis in axes else size * shards(over[axis]) for axis, size in enumerate(leaf.shape))
        for leaf, (axes, over) in zip(leaves, split_axes(layout), strict=True)
    ]
