"""Stacking of small leaves of one shape, since XLA's compile time grows faster than the number of kernels."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from novoclip.mesh import varying_axes

SMALL = 4096  # most elements of a leaf that is stacked with others of its shape, if there are FEW or more
FEW = 4


def alike(leaves: Sequence[jax.Array], kinds: Sequence[Any], *, alone: Sequence[bool]) -> list[tuple[int, ...]]:
    """Return groups of positions of leaves: those that are stacked together, and the others one by one.

    Args:
      leaves: the leaves.
      kinds: for each leaf, what must be equal within a group, besides shape and dtype.
      alone: for each leaf, whether it is never stacked, as leaves that are sharded over devices.
    """
    groups: dict[Any, list[int]] = {}
    for i, (leaf, kind, apart) in enumerate(zip(leaves, kinds, alone, strict=True)):
        together = leaf.size <= SMALL and not apart and not varying_axes(leaf)
        groups.setdefault((jax.typeof(leaf), kind) if together else i, []).append(i)
    return [part for places in groups.values() for part in _all_or_each(tuple(places))]


def stacked(leaves: Sequence[jax.Array], groups: Sequence[tuple[int, ...]]) -> list[jax.Array]:
    """Return a stack for each group of several leaves, and the leaf itself for each of one."""
    return [leaves[places[0]] if len(places) == 1 else jnp.stack([leaves[i] for i in places]) for places in groups]


def in_order(rows: Sequence[jax.Array], groups: Sequence[tuple[int, ...]]) -> jax.Array:
    """Return one array of values of leaves, in their order, from an array for each group."""
    values, order = jnp.concatenate(rows), np.array([place for places in groups for place in places])
    # Not one slice for each leaf: XLA would compile them one by one.
    return values if np.all(order[:-1] < order[1:]) else values[np.argsort(order)]


def _all_or_each(places: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [places] if len(places) >= FEW else [(i,) for i in places]
