"""A window of the recent norms of each block, from which several limits are computed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from novoclip.arguments import check_integer
from novoclip.limit import select_blocks
from novoclip.mesh import broadcast_like
from novoclip.ranges import is_limit, no_limit
from novoclip.safe_math import square_root, wide_ratio


class HistoryState(NamedTuple):
    """The recent norms of each block.

    Attributes:
      history: `(*blocks, window)`, the norms; infinite in entries that are not filled yet.
      slot: int32 `(*blocks)`, index of the entry that the next norm replaces.
    """

    history: jax.Array
    slot: jax.Array


def empty_history(norms: Any, window: int) -> HistoryState:
    """Return a history without entries."""
    empty = jnp.full((*norms.shape, window), no_limit(norms.dtype), norms.dtype)
    return HistoryState(empty, jnp.zeros(norms.shape, jnp.int32))


def remember(state: HistoryState, norms: jax.Array, *, learn_zeros: bool = False) -> HistoryState:
    """Return the history with these norms in place of the oldest. Norms of 0 are ignored, unless `learn_zeros`."""
    window = state.history.shape[-1]
    slots = jax.lax.broadcasted_iota(jnp.int32, state.history.shape, state.history.ndim - 1)
    newest = slots == state.slot[..., None]
    history = jnp.where(newest, broadcast_like(norms[..., None], newest), state.history)
    learned = HistoryState(history, (state.slot + 1) % window)
    return learned if learn_zeros else select_blocks(norms != 0, learned, state)


def check_warmup(warmup: int, window: int) -> None:
    """Raise an error unless `warmup` is an integer in [1, window]."""
    check_integer("warmup", warmup, low=1)
    if warmup > window:
        msg = f"warmup must be at most window={window}; got {warmup}"
        raise ValueError(msg)


def percentile_of(history: jax.Array, percentile: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the number of norms in each block's history, and their percentile; infinite if there are none."""
    filled = jnp.sum(is_limit(history), axis=-1).astype(history.dtype)
    position = percentile / 100 * jnp.maximum(filled - 1, 0)
    below, above = jnp.floor(position), jnp.ceil(position)
    ordered = jnp.sort(history, axis=-1)
    low, high = (jnp.take_along_axis(ordered, i.astype(jnp.int32)[..., None], axis=-1)[..., 0] for i in (below, above))
    return filled, jnp.where(filled > 0, low + (position - below) * (high - low), no_limit(history.dtype))


def mean_and_deviation_of(history: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the number of norms in each block's history, their mean and population standard deviation."""
    present = is_limit(history)
    entries = jnp.where(present, history, 0)
    filled = jnp.sum(present, axis=-1).astype(history.dtype)
    # Division by the largest norm keeps squares in range. It cancels in derivatives, and is a constant there.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(entries), axis=-1))
    scaled = wide_ratio(entries, broadcast_like(jnp.where(largest > 0, largest, 1)[..., None], entries))
    mean = jnp.sum(scaled, axis=-1) / jnp.maximum(filled, 1)
    squares = jnp.where(present, jnp.square(scaled - mean[..., None]), 0)
    deviation = square_root(jnp.sum(squares, axis=-1) / jnp.maximum(filled, 1))
    return filled, largest * mean, largest * deviation
