"""The four forms of the values of blocks: for each, how they are combined, counted, named and given back to leaves."""

from collections.abc import Callable, Sequence
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from novoclip.alike import in_order
from novoclip.layout import Layout, block_count, slice_shapes, split_axes
from novoclip.mesh import across_devices, axis_size, global_slice, local_slice, replicate
from novoclip.platforms import entries, pieces
from novoclip.ranges import common_dtype
from novoclip.slices import by_leaf, groups_of, in_groups

Combine = Callable[..., jax.Array]
Stacks = Sequence[tuple[int, ...]]


class Form(NamedTuple):
    """What is done with the values of blocks in one form.

    Attributes:
      combine: `combine(parts, stacks, layout, combine, dtype)`: the values of the blocks, from the elements of leaves,
        or of stacks of leaves with their places.
      counts: `counts(leaves, layout)`: the number of elements of each block, at least 1, in the form of the values.
      names: `names(named, layout, label_of)`: the name of each entry of the values.
      split: `split(values, leaves, layout)`: for each leaf, an array of several values of its block, along the first
        axis, each in a shape that broadcasts to the leaf.
      takes_stacks: whether `combine` takes stacks of several leaves.
    """

    combine: Callable[[Sequence[jax.Array], Stacks, Layout, Combine, Any], Any]
    counts: Callable[[Sequence[jax.Array], Layout], Any]
    names: Callable[[Sequence[tuple[str, Any]], Layout, Any], list[str]]
    split: Callable[[Sequence[Any], Sequence[jax.Array], Layout], list[jax.Array]]
    takes_stacks: bool = True


# One value for all leaves.


def _combine_all(parts: Sequence[jax.Array], stacks: Stacks, layout: Layout, combine: Combine, dtype: Any) -> Any:
    totals = across_devices([combine(part) for part in parts], _devices(stacks, layout), combine)
    if len(totals) < 2:
        return totals[0] if totals else jnp.zeros((), dtype)
    return combine(jnp.stack(totals))


def _count_all(leaves: Sequence[jax.Array], layout: Layout) -> Any:
    return jnp.asarray(max(1.0, sum(_sizes(leaves, layout))), common_dtype(leaves))


def _no_name(named: Sequence[tuple[str, Any]], layout: Layout, label_of: Any) -> list[str]:
    del named, layout, label_of
    return [""]


def _split_one(values: Sequence[Any], leaves: Sequence[jax.Array], layout: Layout) -> list[jax.Array]:
    del layout
    return entries(jnp.stack(values)[None]) * len(leaves) if leaves else []


# A vector with one entry per block, to which a leaf belongs as a whole.


def _combine_leaves(parts: Sequence[jax.Array], stacks: Stacks, layout: Layout, combine: Combine, dtype: Any) -> Any:
    if not parts:
        return jnp.zeros((0,), dtype)
    rows = [
        combine(part, axis=tuple(range(int(len(places) > 1), part.ndim))).reshape(-1)
        for part, places in zip(parts, stacks, strict=True)
    ]
    values = in_order(across_devices(rows, _devices(stacks, layout), combine), stacks)
    if block_count(layout) == len(layout.block_of):
        return values
    members: dict[int, list[int]] = {}
    for i, block in enumerate(layout.block_of):
        members.setdefault(block, []).append(i)
    return jnp.stack([combine(values[np.array(places)]) for places in members.values()])


def _count_leaves(leaves: Sequence[jax.Array], layout: Layout) -> Any:
    counts = [0.0] * block_count(layout)  # floats, since int32 ends at 2^31
    for block, size in zip(layout.block_of, _sizes(leaves, layout), strict=True):
        counts[block] += size
    return jnp.asarray(np.maximum(counts, 1.0), common_dtype(leaves))


def _name_blocks(named: Sequence[tuple[str, Any]], layout: Layout, label_of: Any) -> list[str]:
    names: dict[int, str] = {}
    for block, (path, leaf) in zip(layout.block_of, named, strict=True):
        names.setdefault(block, str(path if label_of is None else label_of(path, leaf)))
    return list(names.values())


def _split_entries(values: Sequence[Any], leaves: Sequence[jax.Array], layout: Layout) -> list[jax.Array]:
    del leaves
    rows = entries(jnp.stack(values, axis=1))
    return [rows[block] for block in layout.block_of]


# A vector with one entry for each layer of each leaf.


def _combine_layers(parts: Sequence[jax.Array], stacks: Stacks, layout: Layout, combine: Combine, dtype: Any) -> Any:
    del stacks  # of one leaf each
    if not parts:
        return jnp.zeros((0,), dtype)
    each = zip(parts, split_axes(layout), strict=True)
    layers = [global_slice(combine(x, axis=axes, keepdims=True), axes, over, combine) for x, (axes, over) in each]
    return jnp.concatenate([replicate(layer).reshape(-1) for layer in layers])


def _count_layers(leaves: Sequence[jax.Array], layout: Layout) -> Any:
    slices = [math.prod(shape) for shape in slice_shapes(leaves, layout)]
    return jnp.asarray(np.repeat(_slice_sizes(leaves, layout), slices), common_dtype(leaves))


def _name_layers(named: Sequence[tuple[str, Any]], layout: Layout, label_of: Any) -> list[str]:
    del label_of
    numbers = [math.prod(shape) for shape in slice_shapes([leaf for _, leaf in named], layout)]
    return [
        str(path) if number == 1 else f"{path}/{i}"
        for (path, _), number in zip(named, numbers, strict=True)
        for i in range(number)
    ]


def _split_layers(values: Sequence[Any], leaves: Sequence[jax.Array], layout: Layout) -> list[jax.Array]:
    shapes = slice_shapes(leaves, layout)
    parts = pieces(jnp.stack(values, axis=1), [math.prod(shape) for shape in shapes])
    each = [part.T.reshape(len(values), *shape) for part, shape in zip(parts, shapes, strict=True)]
    return _on_this_device(each, leaves, layout)


# Slices: an array for each shape of the values of a leaf.


def _combine_slices(parts: Sequence[jax.Array], stacks: Stacks, layout: Layout, combine: Combine, dtype: Any) -> Any:
    found: dict[tuple[int, ...], jax.Array] = {}
    for part, places in zip(parts, stacks, strict=True):
        axes, over = layout.axes[places[0]], layout.partition[places[0]]
        if len(places) > 1:
            found[places] = combine(part, axis=tuple(axis + 1 for axis in axes), keepdims=True)
        else:
            found[places] = global_slice(combine(part, axis=axes, keepdims=True), axes, over, combine)
    # Not from the shapes of the leaves, of which a device may hold a part.
    shapes = {place: found[places].shape[int(len(places) > 1) :] for places in found for place in places}
    return in_groups(found, groups_of([shapes[place] for place in sorted(shapes)]), dtype)


def _count_slices(leaves: Sequence[jax.Array], layout: Layout) -> Any:
    dtype = common_dtype(leaves)
    each = zip(leaves, _slice_sizes(leaves, layout), strict=True)
    counts: dict[tuple[int, ...], jax.Array] = {
        (i,): jnp.asarray(np.full((1,) * leaf.ndim, size, dtype)) for i, (leaf, size) in enumerate(each)
    }
    return in_groups(counts, groups_of(slice_shapes(leaves, layout)), dtype)


def _split_slices(values: Sequence[Any], leaves: Sequence[jax.Array], layout: Layout) -> list[jax.Array]:
    together = jax.tree.map(lambda *each: jnp.stack(each, axis=1), *values)
    return _on_this_device(by_leaf(together), leaves, layout)


# What they share.


def _devices(stacks: Stacks, layout: Layout) -> list[tuple[str, ...]]:
    return [layout.over[places[0]] for places in stacks]


def _sizes(leaves: Sequence[jax.Array], layout: Layout) -> list[float]:
    """Return the number of elements of each leaf over all devices."""
    return [leaf.size * axis_size(names) for leaf, names in zip(leaves, layout.over, strict=True)]


def _slice_sizes(leaves: Sequence[jax.Array], layout: Layout) -> list[float]:
    """Return the number of elements of each slice of each leaf over all devices, at least 1."""
    along = [axis_size([name for axis in axes for name in over[axis]]) for axes, over in split_axes(layout)]
    each = zip(leaves, layout.axes, along, strict=True)
    return [max(math.prod(leaf.shape[axis] for axis in axes) * devices, 1.0) for leaf, axes, devices in each]


def _on_this_device(each: list[jax.Array], leaves: Sequence[jax.Array], layout: Layout) -> list[jax.Array]:
    return [
        local_slice(values, (len(values), *leaf.shape), ((), *over))
        for values, leaf, over in zip(each, leaves, layout.partition, strict=True)
    ]


FORMS = {
    "scalar": Form(_combine_all, _count_all, _no_name, _split_one),
    "stack": Form(_combine_leaves, _count_leaves, _name_blocks, _split_entries),
    "concatenate": Form(_combine_layers, _count_layers, _name_layers, _split_layers, takes_stacks=False),
    "slices": Form(_combine_slices, _count_slices, _name_blocks, _split_slices),
}


def combined(
    parts: Sequence[jax.Array], layout: Layout, combine: Combine, dtype: Any, stacks: Stacks | None = None
) -> Any:
    """Combine the elements of each block. `stacks`: the places of the leaves in each part, by default one."""
    stacks = stacks or [(i,) for i in range(len(parts))]
    return FORMS[layout.form].combine(parts, stacks, layout, combine, dtype)


def block_counts(leaves: Sequence[jax.Array], layout: Layout) -> Any:
    """Return the number of elements of each block, in the form of the norms."""
    return FORMS[layout.form].counts(leaves, layout)


def block_names(named: Sequence[tuple[str, Any]], layout: Layout, label_of: Any = None) -> list[str]:
    """Return the name of each entry of a vector of norms: the path of a leaf, a label, or a path and the layer.

    For Slices, of which a state holds one entry per leaf, the paths; for one norm of all, the empty name.
    """
    return FORMS[layout.form].names(named, layout, label_of)


def split(values: Any, leaves: Sequence[jax.Array], layout: Layout) -> list[jax.Array]:
    """Return for each leaf the value of its block, in a shape that broadcasts to the leaf."""
    return [part[0] for part in split_several([values], leaves, layout)]


def split_several(values: Sequence[Any], leaves: Sequence[jax.Array], layout: Layout) -> list[jax.Array]:
    """Return for each leaf an array of several values of its block, along the first axis."""
    return FORMS[layout.form].split(values, leaves, layout)
