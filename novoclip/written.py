"""What XLA's CPU backend writes out, and in which order. Arrays are returned unchanged; elsewhere nothing is done."""

from collections.abc import Sequence
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from novoclip.mesh import broadcast_like, vary, varying_axes


@jax.jit
def kept_apart(tree: Any) -> Any:
    """Return arrays unchanged, and keep XLA's CPU backend from sharing what is computed from them with other code.

    On other backends it does nothing, since they would write the arrays out. Inside `shard_map`, all arrays count as
    varying if one of them does, as the results of a barrier do.
    """
    for like in {varying_axes(leaf): leaf for leaf in jax.tree.leaves(tree)}.values():
        tree = jax.tree.map(functools.partial(vary, like=like), tree)
    return lax.platform_dependent(tree, cpu=lax.optimization_barrier, default=lambda tree: tree)


def one_each(numbers: Sequence[jax.Array], leaves: Sequence[jax.Array]) -> list[jax.Array]:
    """Return scalars unchanged, one for each leaf, and keep XLA's CPU backend from seeing that some are equal.

    It writes out a scalar that leaves of one shape share, in an array as large as a leaf, and reads that once more for
    each leaf.
    """
    alike: dict[tuple[str, ...], list[int]] = {}  # since what comes from one barrier varies over the same mesh axes
    for i, leaf in enumerate(leaves):
        alike.setdefault(varying_axes(leaf), []).append(i)
    found = dict[int, jax.Array]()
    for members in alike.values():
        # With a leaf, since XLA makes one of two barriers of the same numbers.
        _, *own = kept_apart([lax.stop_gradient(leaves[members[0]]), *(numbers[i] for i in members)])
        found |= zip(members, own, strict=True)
    return [found[i] for i in range(len(leaves))]


@jax.jit
def written_out(array: jax.Array) -> jax.Array:
    """Return an array unchanged, which XLA's CPU backend computes once for all its uses.

    XLA does not duplicate a division, so it is divided by ones that it cannot recognize as ones. Integers and booleans
    are left as they are.
    """
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    return lax.platform_dependent(array, cpu=lambda array: array / _ones(array), default=lambda array: array)


@jax.jit
def computed_again(tree: Any) -> Any:
    """Return arrays unchanged, and keep XLA's CPU backend from writing out what is computed from them and from others.

    What `kept_apart` returns may itself be written out, unless it is an argument of the program.
    """

    def again(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.where(_nowhere(leaf), jnp.zeros((), leaf.dtype), leaf), tree)

    return lax.platform_dependent(tree, cpu=again, default=lambda tree: tree)


@jax.jit
def written_in_turn(first: jax.Array, new: Sequence[jax.Array], old: Sequence[jax.Array]) -> list[jax.Array]:
    """Return new arrays unchanged, which XLA's CPU backend computes one by one, after the first.

    So kernels that overwrite old arrays follow those that read them, and no copies are kept. Each array is chosen by a
    condition on the one before that never holds. Arrays may have more axes than the first, after its own. Inside
    `shard_map`, the new arrays must vary over the mesh axes of all others.
    """

    def in_turn(first: jax.Array, new: Sequence[jax.Array], old: Sequence[jax.Array]) -> list[jax.Array]:
        found, late = [], first
        for array, before in zip(new, old, strict=True):
            nowhere = lax.expand_dims(_nowhere(late), range(first.ndim, array.ndim))
            found.append(jnp.where(broadcast_like(nowhere, array), before, array))
            if array.size:
                late = found[-1][(..., *(0,) * (array.ndim - first.ndim))]
        return found

    def unchanged(first: jax.Array, new: Sequence[jax.Array], old: Sequence[jax.Array]) -> list[jax.Array]:
        del first, old
        return list(new)

    return lax.platform_dependent(first, list(new), list(old), cpu=in_turn, default=unchanged)


def _nowhere(array: jax.Array) -> jax.Array:
    """Return False for each element. XLA does not see that, LLVM does."""
    if not jnp.issubdtype(array.dtype, jnp.number):
        return jnp.zeros(array.shape, bool)  # booleans, or keys of random numbers
    # Not below and above 0: XLA knows that a norm is not negative.
    return (array.real < 1) & (array.real > 2)


def _ones(array: jax.Array) -> jax.Array:
    positive = array > 0
    return positive.astype(array.dtype) + (~positive).astype(array.dtype)
