"""Norms of blocks of leaves, and their rescaling: precision and range are settled here, once."""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from novoclip.mesh import Shards, across_devices, broadcast_like, own_slices, shards, whole, whole_slices
from novoclip.ranges import RANGES
from novoclip.safe_math import first_factor, power_near, shrunk, square_root, wide_ratio

NORMS = ("l1", "l2", "max", "rms")


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


def accumulation_dtype(dtype: Any) -> Any:
    """Return float64 for 64-bit floats and 128-bit complex numbers, else float32."""
    # Without x64, JAX takes float64 of NumPy's as float32.
    return jnp.float64 if jnp.finfo(jax.dtypes.canonicalize_dtype(dtype)).bits == 64 else jnp.float32


# Compiled once for each layout: outside jit, a bare lax.while_loop would compile at every call.
@functools.partial(jax.jit, static_argnums=(1, 2))
def block_norms(leaves: list[jax.Array], layout: Layout, norm: str) -> jax.Array:
    """Return the norms of the blocks, accumulated in at least float32.

    Right wherever the sum of the block's numbers, or the root of the sum of their squares, can
    be represented; only one outside the usual range costs more passes. A block counts as zero
    if all its numbers are under 6e-33 (float64: 6e-275).
    """
    dtype = common_dtype(leaves)
    if norm not in ("l1", "max"):
        return _root_norms(leaves, layout, norm)
    sizes = [jnp.abs(x).astype(dtype) for x in leaves]
    if norm == "l1":
        return _combined(sizes, layout, jnp.sum, dtype)
    largest = _combined(sizes, layout, functools.partial(jnp.max, initial=0), dtype)
    # A maximum may have lost a NaN.
    finite = _combined([shrunk(x, dtype) for x in leaves], layout, jnp.sum, dtype)
    return jnp.where(jnp.isfinite(finite), largest, finite)


def length(vector: jax.Array) -> jax.Array:
    """Return the Euclidean norm of a vector, or of a scalar, that is the same on every device."""
    layout = Layout((0,), (tuple(range(vector.ndim)),), "scalar", over=((),))
    return block_norms([vector], layout, "l2")


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _root_norms(leaves: list[jax.Array], layout: Layout, norm: str) -> jax.Array:
    if layout.form == "scalar":
        leaves, layout = _stack_small(leaves, layout)
    dtype = common_dtype(leaves)
    ranges = RANGES[jnp.finfo(dtype).bits]
    sizes = block_counts(leaves, layout) if norm == "rms" else 1
    scales = jnp.array([ranges.usual, ranges.for_small, ranges.for_large], dtype)

    def sums(turn: jax.Array) -> jax.Array:
        squares = [_square(x, scales[turn], dtype) for x in leaves]
        return _combined(squares, layout, jnp.sum, dtype)

    # A loop that usually ends after one turn: the program holds the sums once, and a branch twice.
    def unfinished(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        turn, totals = carry
        return (turn == 0) | (turn < 3) & ~jnp.all(_in_range(totals[0]))

    def take(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        turn, totals = carry
        return turn + 1, totals.at[turn].set(sums(turn))

    shape = jax.eval_shape(sums, 0).shape
    _, totals = lax.while_loop(unfinished, take, (jnp.zeros((), jnp.int32), jnp.zeros((3, *shape), dtype)))
    usual, small, large = (square_root(totals[turn] / sizes) / scales[turn] for turn in range(3))
    return jnp.where(_in_range(totals[0]), usual, jnp.where(totals[0] < ranges.small, small, large))


@_root_norms.defjvp
def _root_norms_jvp(layout: Layout, norm: str, primals: Any, tangents: Any) -> Any:
    # d||x|| = <x / ||x||, dx>, whose numbers stay in range where those of the squares do not.
    leaves, dleaves = primals[0], tangents[0]
    norms = _root_norms(leaves, layout, norm)
    sizes = block_counts(leaves, layout) if norm == "rms" else 1
    near = power_near(norms)
    inverse = jnp.where(norms == 0, 0, 1 / jnp.where(norms == 0, 1, norms * near))
    factors = (split(by, leaves, layout) for by in (near, inverse))
    products = [_product(*each) for each in zip(leaves, dleaves, *factors, strict=True)]
    return norms, _combined(products, layout, jnp.sum, norms.dtype) / sizes


def _stack_small(leaves: list[jax.Array], layout: Layout) -> tuple[list[jax.Array], Layout]:
    """Stack small leaves of one shape and dtype: XLA's compile time grows faster than their number."""
    alike: dict[Any, list[jax.Array]] = {}
    for leaf, axes in zip(leaves, layout.over, strict=True):
        alike.setdefault((jax.typeof(leaf), axes), []).append(leaf)
    stacked: list[jax.Array] = []
    over: list[tuple[str, ...]] = []
    for (_, axes), group in alike.items():
        stack = len(group) >= 16 and group[0].size <= 1024
        stacked += [jnp.stack(group)] if stack else group
        over += [axes] * (1 if stack else len(group))
    all_axes = tuple(tuple(range(leaf.ndim)) for leaf in stacked)
    return stacked, Layout((0,) * len(stacked), all_axes, "scalar", over=tuple(over))


def _product(leaf: jax.Array, tangent: jax.Array, near: jax.Array, by: jax.Array) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return _product(leaf.real, tangent.real, near, by) + _product(leaf.imag, tangent.imag, near, by)
    return (leaf.astype(by.dtype) * near * by) * tangent.astype(by.dtype)


def _in_range(total: jax.Array) -> jax.Array:
    small = RANGES[jnp.finfo(total.dtype).bits].small
    return (total == 0) | (total >= small) & jnp.isfinite(total)


def common_dtype(leaves: list[jax.Array]) -> Any:
    """Return float64 if any leaf has 64 bits a number, else float32."""
    double = any(accumulation_dtype(leaf.dtype) == jnp.float64 for leaf in leaves)
    return jnp.float64 if double else jnp.float32


def rescale_leaves(leaves: list[jax.Array], layout: Layout, old: jax.Array, new: jax.Array) -> list[jax.Array]:
    """Multiply each block by the one factor that takes its norm from `old` to `new`.

    A block whose `new` is 0 becomes zeros, NaN too, unless its norm counted as 0 already.
    Where `old` is 0, or not finite while `new` is not 0, the block is left as it is.
    """
    usable, new = jnp.isfinite(old) & (old > 0), jnp.asarray(new).astype(old.dtype)
    # Two masks: a division by 0 in the branch not taken would make derivatives NaN.
    size = jnp.where(usable, old, 1)
    shift = first_factor(jnp.where(usable & (new != 0), lax.stop_gradient(new / size), 1))
    factor = jnp.where(usable, wide_ratio(new, size * shift), 1)
    factor = jnp.where((new == 0) & (old != 0), 0, jnp.minimum(factor, jnp.finfo(factor.dtype).max))
    shifts, factors = (split(lax.optimization_barrier(x), leaves, layout) for x in (shift, factor))
    return [_multiply(*each) for each in zip(leaves, shifts, factors, strict=True)]


def _multiply(leaf: jax.Array, shift: jax.Array, factor: jax.Array) -> jax.Array:
    # The factor of a float32 leaf beside float64 ones may be beyond float32.
    dtype = jnp.float64 if factor.dtype == jnp.float64 else accumulation_dtype(leaf.dtype)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return lax.complex(_multiply(leaf.real, shift, factor), _multiply(leaf.imag, shift, factor))
    if jnp.finfo(leaf.dtype).bits < 32:
        # Otherwise XLA shares the upcast with the norm, and keeps a float32 copy of every leaf.
        leaf, factor = lax.optimization_barrier((leaf, factor))
    scaled = leaf.astype(dtype) * shift.astype(dtype) * factor.astype(dtype)
    if jnp.finfo(leaf.dtype).bits < jnp.finfo(dtype).bits:
        largest = jnp.asarray(jnp.finfo(leaf.dtype).max, dtype)
        scaled = jnp.where(jnp.isinf(leaf), scaled, jnp.clip(scaled, -largest, largest))
    return jnp.where(broadcast_like(factor == 0, leaf), jnp.zeros((), leaf.dtype), scaled.astype(leaf.dtype))


def _square(leaf: jax.Array, scale: Any, dtype: Any) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return _square(leaf.real, scale, dtype) + _square(leaf.imag, scale, dtype)
    if jnp.finfo(leaf.dtype).bits < 32:
        # Otherwise XLA hoists the upcast out of the loop, and keeps a float32 copy of every leaf.
        leaf, scale = lax.optimization_barrier((leaf, scale))
    return jnp.square(leaf.astype(dtype) * scale)


def _block_count(layout: Layout) -> int:
    return max(layout.block_of, default=-1) + 1


def block_counts(leaves: list[jax.Array], layout: Layout) -> Any:
    """Return how many numbers each block holds, in the form of the norms."""
    dtype = common_dtype(leaves)
    sizes = [math.prod(leaf.shape[axis] for axis in axes) for leaf, axes in zip(leaves, layout.axes, strict=True)]
    if layout.form == "concatenate":
        along = [shards([name for axis in axes for name in split[axis]]) for axes, split in _split_axes(layout)]
        slices = [math.prod(shape) for shape in _slice_shapes(leaves, layout)]
        return jnp.asarray(np.repeat([float(max(a * b, 1)) for a, b in zip(sizes, along, strict=True)], slices), dtype)
    counts = [0.0] * _block_count(layout)  # not integers, which end at 2^31
    for block, size, axes in zip(layout.block_of, sizes, layout.over, strict=True):
        counts[block] += size * shards(axes)
    return jnp.asarray(np.maximum(counts, 1.0) if layout.form == "stack" else max([1.0, *counts]), dtype)


def _split_axes(layout: Layout) -> list[tuple[tuple[int, ...], Shards]]:
    return list(zip(layout.axes, layout.shards, strict=True))


def _reduce(parts: list[jax.Array], layout: Layout, combine: Callable[..., jax.Array]) -> list[jax.Array]:
    """Combine each leaf over its axes, then the leaves of each block, on all devices; one array a block."""
    if layout.form == "concatenate":
        split = _split_axes(layout)
        return [
            whole_slices(combine(part, axis=axes, keepdims=True), axes, over, combine)
            for part, (axes, over) in zip(parts, split, strict=True)
        ]
    reduced = [combine(part, axis=axes) for part, axes in zip(parts, layout.axes, strict=True)]
    members: list[list[jax.Array]] = [[] for _ in range(_block_count(layout))]
    for part, block in zip(across_devices(reduced, layout.over, combine), layout.block_of, strict=True):
        members[block].append(part)
    return [group[0] if len(group) == 1 else combine(jnp.stack(group)) for group in members]


def _combined(parts: list[jax.Array], layout: Layout, combine: Callable[..., jax.Array], dtype: Any) -> jax.Array:
    blocks = _reduce(parts, layout, combine)
    if layout.form == "scalar":
        return blocks[0] if blocks else jnp.zeros((), dtype)
    if not blocks:
        return jnp.zeros((0,), dtype)
    return jnp.stack(blocks) if layout.form == "stack" else jnp.concatenate([whole(x).reshape(-1) for x in blocks])


def split(values: jax.Array, leaves: list[jax.Array], layout: Layout) -> list[jax.Array]:
    """Undo `_combined`: for each leaf its block's value, of a shape that broadcasts to the leaf."""
    if layout.form == "scalar":
        return [values] * len(leaves)
    if layout.form == "stack":
        return [values[block] for block in layout.block_of]
    shapes = _slice_shapes(leaves, layout)
    ends = [0]
    for shape in shapes:
        ends.append(ends[-1] + math.prod(shape))
    slices = [values[start:end].reshape(shape) for start, end, shape in zip(ends[:-1], ends[1:], shapes, strict=True)]
    return [own_slices(part, leaf.shape, over) for part, leaf, over in zip(slices, leaves, layout.shards, strict=True)]


def _slice_shapes(leaves: list[jax.Array], layout: Layout) -> list[tuple[int, ...]]:
    """Return the whole leaves' shapes with 1 in place of each reduced axis."""
    return [
        tuple(1 if axis in axes else size * shards(over[axis]) for axis, size in enumerate(leaf.shape))
        for leaf, (axes, over) in zip(leaves, _split_axes(layout), strict=True)
    ]
