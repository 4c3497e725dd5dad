"""Which block each leaf belongs to, and how values of blocks are broadcast back to leaves."""

from collections.abc import Sequence
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from novoclip.mesh import Partition, axis_size, local_slice
from novoclip.platforms import entries, pieces
from novoclip.ranges import common_dtype
from novoclip.slices import by_leaf, groups_of, in_groups


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


def block_counts(leaves: list[jax.Array], layout: Layout) -> Any:
    """Return the number of elements of each block, in the form of the norms."""
    dtype = common_dtype(leaves)
    sizes = [math.prod(leaf.shape[axis] for axis in axes) for leaf, axes in zip(leaves, layout.axes, strict=True)]
    if layout.form in ("concatenate", "slices"):
        along = [axis_size([name for axis in axes for name in split[axis]]) for axes, split in split_axes(layout)]
        if layout.form == "slices":
            ones = [(1,) * leaf.ndim for leaf in leaves]
            each = [np.full(shape, max(a * b, 1.0), dtype) for shape, a, b in zip(ones, sizes, along, strict=True)]
            counts_of: dict[tuple[int, ...], jax.Array] = {(i,): jnp.asarray(count) for i, count in enumerate(each)}
            return in_groups(counts_of, groups_of(_slice_shapes(leaves, layout)), dtype)
        slices = [math.prod(shape) for shape in _slice_shapes(leaves, layout)]
        return jnp.asarray(np.repeat([float(max(a * b, 1)) for a, b in zip(sizes, along, strict=True)], slices), dtype)
    counts = [0.0] * block_count(layout)  # floats, since int32 ends at 2^31
    for block, size, axes in zip(layout.block_of, sizes, layout.over, strict=True):
        counts[block] += size * axis_size(axes)
    return jnp.asarray(np.maximum(counts, 1.0) if layout.form == "stack" else max([1.0, *counts]), dtype)


def block_names(named: Sequence[tuple[str, Any]], layout: Layout, label_of: Any = None) -> list[str]:
    """Return the name of each entry of a vector of norms: the path of a leaf, a label, or a path and the layer.

    For Slices, of which a state holds one entry per leaf, the paths; for one norm of all, the empty name.
    """
    if layout.form == "scalar":
        return [""]
    if layout.form == "concatenate":
        numbers = [math.prod(shape) for shape in _slice_shapes([leaf for _, leaf in named], layout)]
        each = zip(named, numbers, strict=True)
        return [
            name for (path, _), n in each for name in ([str(path)] if n == 1 else [f"{path}/{i}" for i in range(n)])
        ]
    names: dict[int, str] = {}
    for block, (path, leaf) in zip(layout.block_of, named, strict=True):
        names.setdefault(block, str(path if label_of is None else label_of(path, leaf)))
    return list(names.values())


def split_axes(layout: Layout) -> list[tuple[tuple[int, ...], Partition]]:
    """Return for each leaf the axes that are reduced, and the mesh axes that each axis is sharded over."""
    return list(zip(layout.axes, layout.partition, strict=True))


def split(values: Any, leaves: list[jax.Array], layout: Layout) -> list[jax.Array]:
    """Return for each leaf the value of its block, in a shape that broadcasts to the leaf."""
    return [parts[0] for parts in split_several([values], leaves, layout)]


def split_several(values: Sequence[Any], leaves: list[jax.Array], layout: Layout) -> list[list[jax.Array]]:
    """Return what `split` does, for several values of each block."""
    number = len(values)
    if layout.form == "scalar":
        row = entries(jnp.stack(values)[None])[0] if leaves else values
        return [[row[k] for k in range(number)]] * len(leaves)
    if layout.form == "stack":
        rows = entries(jnp.stack(values, axis=1))
        return [[rows[block][k] for k in range(number)] for block in layout.block_of]
    if layout.form == "concatenate":
        shapes = _slice_shapes(leaves, layout)
        slices = pieces(jnp.stack(values, axis=1), [math.prod(shape) for shape in shapes])
        parts = [[part[:, k].reshape(shape) for k in range(number)] for part, shape in zip(slices, shapes, strict=True)]
    else:
        together = jax.tree.map(lambda *each: jnp.stack(each, axis=1), *values)
        parts = [[row[k] for k in range(number)] for row in by_leaf(together)]
    return [
        [local_slice(part, leaf.shape, over) for part in each]
        for each, leaf, over in zip(parts, leaves, layout.partition, strict=True)
    ]


def _slice_shapes(leaves: list[jax.Array], layout: Layout) -> list[tuple[int, ...]]:
    """Return the shapes of the leaves over all devices, with 1 in place of each reduced axis."""
    return [
        tuple(1 if axis in axes else size * axis_size(over[axis]) for axis, size in enumerate(leaf.shape))
        for leaf, (axes, over) in zip(leaves, split_axes(layout), strict=True)
    ]
