"""Sums and maxima over all devices that hold a part of a leaf, inside `jax.shard_map`.

JAX records in the type of an array over which mesh axes its values vary. Values that do not vary are the same on every
device, and are counted once. Under `pmap` and `check_vma=False` nothing is recorded, and all values count as the same
on every device, unless `across_shards` declares which leaves are sharded.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import contextvars
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Partition = tuple[tuple[str, ...], ...]  # for each axis of a leaf, the mesh axes that it is sharded over
MeshAxesOf = Callable[[str, Any], tuple[str, ...]]  # the mesh axes that a leaf, by its name, is sharded over

_declared: contextvars.ContextVar[tuple[MeshAxesOf, ...]] = contextvars.ContextVar("declared", default=())


def varying_axes(array: Any) -> tuple[str, ...]:
    """Return the mesh axes that an array's values vary over, in order."""
    kind = array if isinstance(array, jax.ShapeDtypeStruct) else jax.typeof(array)
    record = getattr(kind, "manual_axis_type", None)  # in JAX 0.10 and later; before, the axes are in `vma`
    return tuple(sorted(record.varying if record is not None else getattr(kind, "vma", None) or ()))


@contextlib.contextmanager
def declared_varying(axes_of: MeshAxesOf) -> Iterator[None]:
    """Within this context, leaves also count as varying over the mesh axes that a function returns."""
    token = _declared.set((*_declared.get(), axes_of))
    try:
        yield
    finally:
        _declared.reset(token)


def leaf_axes(name: str, leaf: Any) -> tuple[str, ...]:
    """Return the mesh axes that a leaf varies over, by its type or by declaration."""
    declared = (axis for axes_of in _declared.get() for axis in axes_of(name, leaf))
    return tuple(sorted({*varying_axes(leaf), *declared}))


def vary(array: jax.Array, like: Any) -> jax.Array:
    """Return the array, typed as varying over the mesh axes of another as well."""
    axes = tuple(axis for axis in varying_axes(like) if axis not in varying_axes(array))
    if not axes:
        return array
    names: Any = lax  # JAX before 0.8 has only the older name
    return names.pcast(array, axes, to="varying") if hasattr(names, "pcast") else names.pvary(array, axes)


def with_sharding_of(array: jax.Array, leaf: Any) -> jax.Array:
    """Return an array, whose first axes are those of a leaf, varying and sharded as the leaf is."""
    array = vary(array, leaf)
    kind = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
    if _is_placed(kind):
        return jax.device_put(array, kind.sharding)
    if not isinstance(array, jax.core.Tracer) and _is_placed(leaf):
        return jax.device_put(array, leaf.sharding)
    # With automatic axis types the sharding is not in the type of a tracer, and the compiler derives it.
    sharded = isinstance(kind.sharding, NamedSharding) and any(kind.sharding.spec)
    return jax.sharding.reshard(array, kind.sharding) if sharded else array


def broadcast_like(array: jax.Array, leaf: Any) -> jax.Array:
    """Return an array broadcast to a leaf's shape and sharded as the leaf is, as `jnp.where` with the leaf needs it."""
    return with_sharding_of(jnp.broadcast_to(array, leaf.shape), leaf)


def replicate(array: jax.Array) -> jax.Array:
    """Return the array replicated on every device, if explicit axis types shard it."""
    sharding = jax.typeof(array).sharding
    sharded = any(sharding.spec)
    return jax.sharding.reshard(array, NamedSharding(sharding.mesh, PartitionSpec())) if sharded else array


def zeros_like(shape: jax.ShapeDtypeStruct, dtype: Any = None) -> jax.Array:
    """Return the zeros that a ShapeDtypeStruct describes, created with its sharding."""
    sharding = shape.sharding if _is_placed(shape) else None
    zeros = jnp.zeros(shape.shape, dtype or shape.dtype, device=sharding)
    return with_sharding_of(zeros, shape)


def eval_shape(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return `jax.eval_shape(function, tree)` without its cache, which does not know which axes were declared.

    Functions, strings and other leaves that are not numeric count as None.
    """

    def fresh(tree: Any) -> Any:
        return function(tree)

    numeric = jax.tree.map(
        lambda leaf: leaf if hasattr(leaf, "dtype") or isinstance(leaf, complex | float | int) else None, tree
    )
    return _on_mesh_of(jax.eval_shape(fresh, numeric), tree)


def _on_mesh_of(shapes: Any, tree: Any) -> Any:
    """Return shapes that are sharded over an abstract mesh with the mesh of a pytree's leaves, if these have one."""
    leaves = list(filter(_is_placed, jax.tree.leaves(tree)))
    if not leaves:
        return shapes
    mesh = leaves[0].sharding.mesh

    def placed(shape: Any) -> Any:
        sharded = isinstance(shape.sharding, NamedSharding) and any(shape.sharding.spec)
        return shape.update(sharding=NamedSharding(mesh, shape.sharding.spec)) if sharded else shape

    return jax.tree.map(placed, shapes)


def shapes_of(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return the `eval_shape` of a function of each leaf, with the shardings that the leaves have."""

    def described(leaf: Any, shape: Any) -> Any:
        return shape.update(sharding=leaf.sharding) if shape is not None and _is_placed(leaf) else shape

    return jax.tree.map(described, tree, eval_shape(function, tree))


def _is_placed(leaf: Any) -> bool:
    """Whether a leaf, or its ShapeDtypeStruct, is on the devices of a mesh. A traced leaf is not."""
    # Reading the sharding of a tracer is slow: it searches the program so far to compose an error message.
    sharding = None if isinstance(leaf, jax.core.Tracer) else getattr(leaf, "sharding", None)
    return isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh)


def axis_size(axes: Sequence[str]) -> int:
    """Return the number of devices along these mesh axes."""
    return math.prod(lax.psum(1, axis) for axis in axes)


def across_devices(
    parts: list[jax.Array], over: Sequence[tuple[str, ...]], combine: Callable[..., jax.Array]
) -> list[jax.Array]:
    """Combine each scalar over the devices along its mesh axes, in one collective for each set of axes."""
    collective = lax.pmax if combine is not jnp.sum else lax.psum
    alike: dict[tuple[str, ...], list[int]] = {}
    for i, axes in enumerate(over):
        alike.setdefault(axes, []).append(i)
    combined = list(parts)
    for axes, members in alike.items():
        if axes:
            together = collective(jnp.stack([parts[i] for i in members]), axes)
            for position, i in enumerate(members):
                combined[i] = together[position]
    return combined


def partition_of(name: str, leaf: Any, spec: Any) -> Partition:
    """Return the mesh axes that each axis of a leaf is sharded over, by its PartitionSpec.

    Raises:
      ValueError: if the leaf varies over mesh axes that its PartitionSpec does not name, or if it has none.
    """
    varying = leaf_axes(name, leaf)
    entries = tuple(spec or ()) + (None,) * (leaf.ndim - len(tuple(spec or ())))
    names = tuple(() if entry is None else (entry,) if isinstance(entry, str) else tuple(entry) for entry in entries)
    missing = set(varying) - {axis for axes in names for axis in axes}
    if missing:
        msg = (
            f"{name!r} is sharded over the mesh axes {sorted(missing)}, but nothing declares along which of its axes: "
            "pass specs=, a pytree of PartitionSpecs like the parameters"
        )
        raise ValueError(msg)
    return tuple(tuple(axis for axis in axes if axis in varying) for axes in names)


def global_slice(
    part: jax.Array, axes: Sequence[int], split: Partition, combine: Callable[..., jax.Array]
) -> jax.Array:
    """Return the reduction of the whole leaf over `axes`, from that of the part of the leaf on this device."""
    reduced = tuple(name for axis in axes for name in split[axis])
    if reduced:
        part = (lax.psum if combine is jnp.sum else lax.pmax)(part, reduced)
    kept = [(axis, names) for axis, names in enumerate(split) if names and axis not in axes]
    if not kept:
        return part
    full = jnp.zeros(_whole_shape(part.shape, axes, split), part.dtype)
    start = [jnp.zeros((), jnp.int32)] * part.ndim
    for axis, names in kept:
        start[axis] = _shard_index(names) * part.shape[axis]
    # A sum with zeros, since the result of a gather would be typed as varying.
    placed = lax.dynamic_update_slice(vary(full, part), part, start)
    return lax.psum(placed, tuple(name for _, names in kept for name in names))


def local_slice(values: jax.Array, shape: Sequence[int], split: Partition) -> jax.Array:
    """Return this device's part of values of the whole leaf, where its part of the leaf has the given shape."""
    for axis, names in enumerate(split):
        if names and values.shape[axis] > 1:
            values = lax.dynamic_slice_in_dim(values, _shard_index(names) * shape[axis], shape[axis], axis)
    return values


def _whole_shape(shape: Sequence[int], axes: Sequence[int], split: Partition) -> tuple[int, ...]:
    return tuple(size if axis in axes else size * axis_size(split[axis]) for axis, size in enumerate(shape))


def _shard_index(names: Sequence[str]) -> jax.Array:
    index = jnp.zeros((), jnp.int32)
    for name in names:
        index = index * lax.psum(1, name) + lax.axis_index(name)
    return index
