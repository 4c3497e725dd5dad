"""Norms of blocks of leaves, and rescaling to other norms, without overflow, underflow or loss of precision."""

from collections.abc import Sequence
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from novoclip.alike import alike, stacked
from novoclip.forms import FORMS, block_counts, combined, split, split_several
from novoclip.layout import Layout
from novoclip.mesh import broadcast_like, varying_axes
from novoclip.platforms import first_enough, sum_of_rows
from novoclip.ranges import RANGES, accumulation_dtype, common_dtype
from novoclip.safe_math import all_true, first_factor, not_lost, power_near, shrinking, shrunk, square_root, wide_ratio
from novoclip.written import kept_apart, one_each

NORMS = ("l1", "l2", "max", "rms")


# Compiled once for each layout: outside jit, a bare lax.while_loop would compile at every call.
@functools.partial(jax.jit, static_argnums=(1, 2))
def block_norms(leaves: list[jax.Array], layout: Layout, norm: str) -> Any:
    """Return the norms of the blocks, accumulated in at least float32.

    A norm is right wherever the sum of the block's elements, or the root of the sum of their squares, can be
    represented. Only a norm outside the usual range costs more passes. A block counts as zero if all its elements are
    below 6e-33 (float64: 6e-275).
    """
    dtype = common_dtype(leaves)
    if norm not in ("l1", "max"):
        return _root_norms(leaves, layout, norm)
    sizes = [jnp.abs(x).astype(dtype) for x in leaves]
    if norm == "l1":
        return combined(sizes, layout, jnp.sum, dtype)
    largest = combined(sizes, layout, functools.partial(jnp.max, initial=0), dtype)
    parts = [shrunk(x, factor).astype(dtype) for x, factor in zip(leaves, shrinking(leaves), strict=True)]
    sums = combined(parts, layout, jnp.sum, dtype)
    return jax.tree.map(not_lost, largest, sums)


def l2_norm(vector: jax.Array) -> jax.Array:
    """Return the Euclidean norm of a vector, or of a scalar, which is the same on every device."""
    layout = Layout((0,), (tuple(range(vector.ndim)),), "scalar", over=((),))
    return block_norms([vector], layout, "l2")


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _root_norms(leaves: list[jax.Array], layout: Layout, norm: str) -> Any:
    dtype = common_dtype(leaves)
    ranges = RANGES[jnp.finfo(dtype).bits]
    stacks = _small_alike(leaves, layout)
    scales = jnp.array([ranges.usual, ranges.for_small, ranges.for_large], dtype)

    def sums(leaves: Sequence[jax.Array], scale: jax.Array) -> Any:
        squares = [
            _squares(x, own, dtype, layout.axes[places[0]]) if len(places) == 1 else _square(x, own, dtype)
            for x, own, places in zip(leaves, one_each([scale] * len(leaves), leaves), stacks, strict=True)
        ]
        return combined(squares, layout, jnp.sum, dtype, stacks)

    totals = first_enough(sums, scales, _all_in_range, stacked(leaves, stacks))
    sizes = block_counts(leaves, layout) if norm == "rms" else jax.tree.map(lambda _: 1, totals[0])
    return jax.tree.map(lambda size, *totals: _root(totals, size, scales), sizes, *totals)


@jax.jit
def _root(totals: Sequence[jax.Array], size: Any, scales: jax.Array) -> jax.Array:
    """Return the root of the mean at the scale that suits it, chosen by the first total, with the scale undone.

    It ends in a division, which XLA's CPU backend computes once for all that use the norms.
    """
    first = totals[0]
    usual, smaller = _in_range(first), first < RANGES[jnp.finfo(first.dtype).bits].small
    total = jnp.where(usual, first, jnp.where(smaller, totals[1], totals[2]))
    scale = jnp.where(usual, scales[0], jnp.where(smaller, scales[1], scales[2]))
    return square_root(total / size) / scale


@_root_norms.defjvp
def _root_norms_jvp(layout: Layout, norm: str, primals: Any, tangents: Any) -> Any:
    # d||x|| = <x / ||x||, dx>, whose terms stay in range where squares do not.
    leaves, dleaves = primals[0], tangents[0]
    norms = _root_norms(leaves, layout, norm)
    sizes = block_counts(leaves, layout) if norm == "rms" else jax.tree.map(lambda _: 1, norms)
    near = jax.tree.map(power_near, norms)
    inverse = jax.tree.map(lambda n, by: jnp.where(n == 0, 0, 1 / jnp.where(n == 0, 1, n * by)), norms, near)
    factors = (split(by, leaves, layout) for by in (near, inverse))
    products = [_product(*each) for each in zip(leaves, dleaves, *factors, strict=True)]
    return norms, jax.tree.map(jnp.divide, combined(products, layout, jnp.sum, common_dtype(leaves)), sizes)


def _small_alike(leaves: list[jax.Array], layout: Layout) -> list[tuple[int, ...]]:
    on_mesh = layout.over or [tuple(name for names in each for name in names) for each in layout.partition]
    takes_stacks = FORMS[layout.form].takes_stacks
    return alike(leaves, layout.axes, alone=[bool(names) or not takes_stacks for names in on_mesh])


def _product(leaf: jax.Array, tangent: jax.Array, near: jax.Array, by: jax.Array) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return _product(leaf.real, tangent.real, near, by) + _product(leaf.imag, tangent.imag, near, by)
    return (leaf.astype(by.dtype) * near * by) * tangent.astype(by.dtype)


def _in_range(total: jax.Array) -> jax.Array:
    small = RANGES[jnp.finfo(total.dtype).bits].small
    return (total == 0) | (total >= small) & jnp.isfinite(total)


def _all_in_range(totals: Any) -> jax.Array:
    each = [all_true(_in_range(total)) for total in jax.tree.leaves(totals)]
    return all_true(jnp.stack(each)) if each else jnp.ones((), bool)


def rescale_leaves(leaves: list[jax.Array], layout: Layout, old: Any, new: Any) -> list[jax.Array]:
    """Multiply each block by the factor that changes its norm from `old` to `new`.

    A block whose `new` is 0 becomes zeros, also where it holds NaN, unless its `old` is 0. Where `old` is 0, or is not
    finite while `new` is not 0, the block is unchanged.
    """
    pairs = jax.tree.map(lambda a, b: kept_apart(_factors(a, jnp.asarray(b))), old, new)
    shifts, factors = (jax.tree.map(lambda _, pair, k=k: pair[k], old, pairs) for k in (0, 1))
    both = split_several([shifts, factors], leaves, layout)
    return [_multiply(leaf, by) for leaf, by in zip(leaves, both, strict=True)]


@jax.jit
def _factors(old: jax.Array, new: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the factors of new / old: a power of two, 1 unless the quotient is very large or small, and the rest."""
    usable, new = jnp.isfinite(old) & (old > 0), new.astype(old.dtype)
    # Two masks: a division by 0 in the branch not taken would make derivatives NaN.
    size = jnp.where(usable, old, 1)
    shift = first_factor(jnp.where(usable & (new != 0), lax.stop_gradient(new / size), 1))
    quotient = wide_ratio(new, size * shift)
    # A block within its limit is returned bit for bit, also where x / x is not exactly 1, as on a GPU.
    quotient = jnp.where(new == old, 1 + (quotient - lax.stop_gradient(quotient)), quotient)
    factor = jnp.where(usable, quotient, 1)
    return shift, jnp.where((new == 0) & (old != 0), 0, jnp.minimum(factor, jnp.finfo(factor.dtype).max))


@jax.jit
def _multiply(leaf: jax.Array, by: jax.Array) -> jax.Array:
    """Return the leaf multiplied by two factors, which lie along the first axis of `by`, in turn."""
    # Where other leaves are float64, the factor of a float32 leaf may be outside the range of float32.
    dtype = jnp.float64 if by.dtype == jnp.float64 else accumulation_dtype(leaf.dtype)
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return lax.complex(_multiply(leaf.real, by), _multiply(leaf.imag, by))
    if jnp.finfo(leaf.dtype).bits < 32:
        # Otherwise XLA shares the upcast with the norm, and keeps a float32 copy of each leaf.
        leaf, by = kept_apart((leaf, by))
    shift, factor = by
    scaled = leaf.astype(dtype) * shift.astype(dtype) * factor.astype(dtype)
    if jnp.finfo(leaf.dtype).bits < jnp.finfo(dtype).bits:
        largest = jnp.asarray(jnp.finfo(leaf.dtype).max, dtype)
        scaled = jnp.where(jnp.isinf(leaf), scaled, jnp.clip(scaled, -largest, largest))
    scaled = scaled.astype(leaf.dtype)
    return lax.select(broadcast_like(factor == 0, leaf), lax.full_like(scaled, 0), scaled)


@functools.partial(jax.jit, static_argnums=2)
def _square(leaf: jax.Array, scale: Any, dtype: Any) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return _square(leaf.real, scale, dtype) + _square(leaf.imag, scale, dtype)
    if jnp.finfo(leaf.dtype).bits < 32:
        # Otherwise XLA hoists the upcast out of the loop, and keeps a float32 copy of each leaf.
        leaf, scale = kept_apart((leaf, scale))
    return jnp.square(leaf.astype(dtype) * scale)


def _squares(leaf: jax.Array, scale: jax.Array, dtype: Any, axes: tuple[int, ...]) -> jax.Array:
    """Return the squares of a leaf's elements; for a matrix whose rows are summed, the sum of the squares' rows."""
    # Only these: merging the axes of other leaves would gather a leaf that is sharded along one of them.
    if leaf.ndim != 2 or axes != (0,) or varying_axes(leaf):
        return _square(leaf, scale, dtype)
    return sum_of_rows(lambda part: _square(part, scale, dtype), leaf)
