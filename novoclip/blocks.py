"""Norms of blocks of leaves, and their rescaling: precision and range are settled here, once."""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from novoclip.layout import Layout, block_count, block_counts, split, split_axes, split_several
from novoclip.mesh import across_devices, broadcast_like, whole, whole_slices
from novoclip.platforms import first_enough, kept_apart
from novoclip.ranges import RANGES, accumulation_dtype, common_dtype
from novoclip.safe_math import first_factor, power_near, shrunk, square_root, wide_ratio

NORMS = ("l1", "l2", "max", "rms")


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

    def sums(leaves: Sequence[jax.Array], scale: jax.Array) -> jax.Array:
        squares = [_square(x, scale, dtype) for x in leaves]
        return _combined(squares, layout, jnp.sum, dtype)

    totals = first_enough(sums, scales, lambda total: jnp.all(_in_range(total)), leaves)
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
    both = split_several(kept_apart(jnp.stack([shift, factor], axis=-1)), leaves, layout)
    return [_multiply(leaf, by[..., 0], by[..., 1]) for leaf, by in zip(leaves, both, strict=True)]


@jax.jit
def _multiply(leaf: jax.Array, shift: jax.Array, factor: jax.Array) -> jax.Array:
    # The factor of a float32 leaf beside float64 ones may be beyond float32.
    dtype = jnp.float64 if factor.dtype == jnp.float64 else accumulation_dtype(leaf.dtype)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return lax.complex(_multiply(leaf.real, shift, factor), _multiply(leaf.imag, shift, factor))
    if jnp.finfo(leaf.dtype).bits < 32:
        # Otherwise XLA shares the upcast with the norm, and keeps a float32 copy of every leaf.
        leaf, factor = kept_apart((leaf, factor))
    scaled = leaf.astype(dtype) * shift.astype(dtype) * factor.astype(dtype)
    if jnp.finfo(leaf.dtype).bits < jnp.finfo(dtype).bits:
        largest = jnp.asarray(jnp.finfo(leaf.dtype).max, dtype)
        scaled = jnp.where(jnp.isinf(leaf), scaled, jnp.clip(scaled, -largest, largest))
    return jnp.where(broadcast_like(factor == 0, leaf), jnp.zeros((), leaf.dtype), scaled.astype(leaf.dtype))


@functools.partial(jax.jit, static_argnums=2)
def _square(leaf: jax.Array, scale: Any, dtype: Any) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return _square(leaf.real, scale, dtype) + _square(leaf.imag, scale, dtype)
    if jnp.finfo(leaf.dtype).bits < 32:
        # Otherwise XLA hoists the upcast out of the loop, and keeps a float32 copy of every leaf.
        leaf, scale = kept_apart((leaf, scale))
    return jnp.square(leaf.astype(dtype) * scale)


def _reduce(parts: list[jax.Array], layout: Layout, combine: Callable[..., jax.Array]) -> list[jax.Array]:
    """Combine each leaf over its axes, then the leaves of each block, on all devices; one array a block."""
    if layout.form == "concatenate":
        split = split_axes(layout)
        return [
            whole_slices(combine(part, axis=axes, keepdims=True), axes, over, combine)
            for part, (axes, over) in zip(parts, split, strict=True)
        ]
    reduced = [combine(part, axis=axes) for part, axes in zip(parts, layout.axes, strict=True)]
    members: list[list[jax.Array]] = [[] for _ in range(block_count(layout))]
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
