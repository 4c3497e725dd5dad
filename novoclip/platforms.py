"""Operations that are written differently for XLA's CPU backend and for the others."""

from collections.abc import Callable, Sequence
import functools
import itertools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from novoclip.mesh import with_sharding_of

ROW = 64  # rows of a block that are taken together
LARGE = 2**24  # least elements of a matrix whose rows are summed in blocks
BLOCK = 2**18  # elements of a block


@jax.jit
def entries(rows: jax.Array) -> list[jax.Array]:
    """Return an array's rows, its entries along the first axis, such that the kernels that use them are equal.

    XLA's CPU backend fuses a slice into each kernel that uses it. Kernels that differ only by the position of their
    slice are compiled one by one, 15 ms each; equal kernels are compiled once. The rows are also not computed again in
    each kernel, for each of its elements. Subnormal numbers may become 0, as in any division on that backend.
    """
    if not rows.size or not jnp.issubdtype(rows.dtype, jnp.floating):
        return _by_slices(rows)
    return lax.platform_dependent(rows, cpu=_by_index, default=_by_slices)


def pieces(rows: jax.Array, lengths: Sequence[int]) -> list[jax.Array]:
    """Cut an array into consecutive pieces of these lengths along its first axis, by `entries`."""
    alike: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        alike.setdefault(length, []).append(i)
    starts = [0, *itertools.accumulate(lengths)]
    found: dict[int, jax.Array] = {}
    for length, members in alike.items():
        parts = [lax.slice_in_dim(rows, starts[i], starts[i] + length) for i in members]
        found |= zip(members, entries(jnp.stack(parts)), strict=True)
    return [found[i] for i in range(len(lengths))]


def _has_one_cpu_device() -> bool:
    try:
        return jax.device_count("cpu") == 1
    except RuntimeError:  # JAX is configured without a CPU backend
        return False


def if_needed(needed: jax.Array, function: Callable[..., Any], otherwise: Callable[..., Any], *arrays: Any) -> Any:
    """Return function(*arrays) if it is needed, and else either that or otherwise(*arrays), whichever costs less.

    On a CPU this is a branch. Elsewhere it is function(*arrays): with a branch, the host of a GPU would wait for the
    condition at every step. Outside of jit the condition is known, and a branch would be compiled anew each time.
    """
    if not isinstance(needed, jax.core.Tracer):
        return (function if needed else otherwise)(*arrays)

    def branch(*arrays: Any) -> Any:
        return lax.cond(needed, function, otherwise, *arrays)

    return lax.platform_dependent(*arrays, cpu=branch, default=function)


def sum_of_rows(terms: Callable[[jax.Array], jax.Array], matrix: jax.Array) -> jax.Array:
    """Return the sum of the rows of terms(matrix), of shape (1, columns), for terms that are computed per element.

    XLA's CPU backend sums the rows of a large matrix at a third of the memory bandwidth, and blocks of rows at its full
    bandwidth.
    """

    def plainly(matrix: jax.Array) -> jax.Array:
        return jnp.sum(terms(matrix), axis=0, keepdims=True)

    def in_blocks(matrix: jax.Array) -> jax.Array:
        rows = max(BLOCK // matrix.shape[1], 1)
        number = matrix.shape[0] // rows
        kind = jax.eval_shape(terms, matrix)

        def add(i: jax.Array, total: jax.Array) -> jax.Array:
            return total + terms(lax.dynamic_slice_in_dim(matrix, i * rows, rows))

        total = lax.fori_loop(0, number, add, jnp.zeros((rows, matrix.shape[1]), kind.dtype))
        return jnp.sum(total, axis=0, keepdims=True) + plainly(matrix[number * rows :])

    # A matrix that is sharded over several devices would be gathered block by block.
    if matrix.size < LARGE or matrix.shape[0] < 2 * BLOCK // matrix.shape[1] or not _has_one_cpu_device():
        return plainly(matrix)
    return lax.platform_dependent(matrix, cpu=in_blocks, default=plainly)


def first_enough(
    sums: Callable[[Sequence[jax.Array], jax.Array], Any],
    scales: jax.Array,
    is_enough: Callable[[Any], jax.Array],
    leaves: Sequence[jax.Array],
) -> list[Any]:
    """Return sums(leaves, scale), a pytree, for each of three scales; only the first is used if it is enough.

    On a CPU, the others are then zeros or the first once more. Elsewhere all are computed together, from elements that
    are read once: the host of a GPU would wait for the condition of a loop at every step.
    """

    def one_by_one(*leaves: jax.Array) -> list[Any]:
        # A loop, which usually ends after one pass: the program holds the sums once; with a branch, twice.
        def unfinished(carry: tuple[jax.Array, jax.Array, Any]) -> jax.Array:
            pass_index, done, _ = carry
            return (pass_index < len(scales)) & ~done

        def take(carry: tuple[jax.Array, jax.Array, Any]) -> tuple[jax.Array, jax.Array, Any]:
            pass_index, done, (last, one_before, _) = carry
            found = sums(leaves, scales[pass_index])
            return pass_index + 1, done | (pass_index == 0) & is_enough(found), (found, last, one_before)

        def empty(total: Any) -> jax.Array:
            return with_sharding_of(jnp.zeros(total.shape, total.dtype), total)

        zeros = jax.tree.map(empty, jax.eval_shape(lambda: sums(leaves, scales[0])))
        start = (jnp.zeros((), jnp.int32), jnp.zeros((), bool), (zeros, zeros, zeros))
        passes, _, (last, one_before, two_before) = lax.while_loop(unfinished, take, start)
        # After one pass, the first is the last; after three, it is the one before the one before.
        return [jax.tree.map(functools.partial(jnp.where, passes == 1), last, two_before), one_before, last]

    def side_by_side(*leaves: jax.Array) -> list[Any]:
        return [sums(leaves, scale) for scale in scales]

    return lax.platform_dependent(*leaves, cpu=one_by_one, default=side_by_side)


def _by_slices(rows: jax.Array) -> list[jax.Array]:
    return [lax.index_in_dim(rows, i, keepdims=False) for i in range(rows.shape[0])]


def _by_index(rows: jax.Array) -> list[jax.Array]:
    """Take the rows at places that XLA does not know: each is the one before plus 1.

    It does not duplicate a division, as it would a sum or a slice, so each place and each row is a kernel of its own.
    """
    number = rows.shape[0]
    blocks = -(-number // ROW) if number > ROW else 1
    place, one = lax.optimization_barrier((-jnp.ones((), jnp.float32), jnp.ones((), jnp.float32)))
    places = []
    for _ in range(min(number, max(ROW, blocks))):
        place = (place + 1) / one
        places.append(place.astype(jnp.uint32))  # unsigned, since JAX adds a select for places below 0

    def taken(rows: jax.Array) -> list[jax.Array]:
        each = [places[i] for i in range(rows.shape[0])]
        return [lax.dynamic_index_in_dim(rows, at, 0, keepdims=False) / one.astype(rows.dtype) for at in each]

    rows = rows / one.astype(rows.dtype)
    if blocks == 1:
        return taken(rows)
    # By blocks, since XLA takes long for a chain of thousands of places, and for an array that thousands read.
    fill = [(0, blocks * ROW - number, 0), *[(0, 0, 0)] * (rows.ndim - 1)]
    padded = lax.pad(rows, jnp.zeros((), rows.dtype), fill).reshape(blocks, ROW, *rows.shape[1:])
    return [row for block in taken(padded) for row in taken(block)][:number]
