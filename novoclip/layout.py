"""Which block each leaf belongs to, and over which axes and devices its norm is taken."""

from collections.abc import Sequence
from typing import NamedTuple

import jax

from novoclip.mesh import Partition, axis_size


class Layout(NamedTuple):
    """Which block each leaf belongs to. Hashable, so that it can be static under jit.

    Attributes:
      block_of: the block of each leaf, counted from 0 in order of first occurrence.
      axes: the axes of each leaf that its norm is taken over.
      form: the form of the norms: one "scalar"; a vector with one entry per block ("stack"), or with one entry for each
        layer of each leaf ("concatenate"); or Slices ("slices").
      over: for the first two forms, the mesh axes that each leaf is sharded over.
      partition: for the others, the mesh axes that each axis of each leaf is sharded over.
    """

    block_of: tuple[int, ...]
    axes: tuple[tuple[int, ...], ...]
    form: str
    over: tuple[tuple[str, ...], ...] = ()
    partition: tuple[Partition, ...] = ()


def block_count(layout: Layout) -> int:
    """Return the number of blocks, for layouts in which each leaf belongs to one block."""
    return max(layout.block_of, default=-1) + 1


def split_axes(layout: Layout) -> list[tuple[tuple[int, ...], Partition]]:
    """Return for each leaf the axes that are reduced, and the mesh axes that each axis is sharded over."""
    return list(zip(layout.axes, layout.partition, strict=True))


def slice_shapes(leaves: Sequence[jax.Array], layout: Layout) -> list[tuple[int, ...]]:
    """Return the shapes of the leaves over all devices, with 1 in place of each reduced axis."""
    return [
        tuple(1 if axis in axes else size * axis_size(over[axis]) for axis, size in enumerate(leaf.shape))
        for leaf, (axes, over) in zip(leaves, split_axes(layout), strict=True)
    ]
