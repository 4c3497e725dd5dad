"""How many elements of each leaf have which size: counts in bins of half a decade."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from novoclip.leaves import named_leaves
from novoclip.mesh import across_devices, leaf_axes
from novoclip.ranges import accumulation_dtype
from novoclip.telemetry import states_of, with_places
from novoclip.wrappers.watch_state import WatchState

# The lower ends of the bins; the first bin holds what is smaller, zeros included.
EDGES = 10.0 ** np.arange(-12, 4.5, 0.5)


def histograms_of(tree: Any) -> jax.Array:
    """Return int32 `(leaves, bins)`, the number of elements of each numeric leaf in each bin; NaN counts as largest."""
    leaves = named_leaves(tree)
    if not leaves:
        return jnp.zeros((0, EDGES.size + 1), jnp.int32)
    above = across_devices([_above(leaf) for _, leaf in leaves], [leaf_axes(*leaf) for leaf in leaves], jnp.sum)
    rows = jnp.stack(above)
    return rows - jnp.concatenate([rows[:, 1:], jnp.zeros_like(rows[:, :1])], axis=1)


def _above(leaf: jax.Array) -> jax.Array:
    """Return the number of elements, and how many of them are at least as large as each edge."""
    sizes = jnp.abs(leaf).astype(accumulation_dtype(leaf.dtype)).reshape(-1)
    counts = [jnp.sum(~(sizes < edge), dtype=jnp.int32) for edge in EDGES]
    return jnp.stack([jnp.asarray(sizes.size, jnp.int32), *counts])


def histograms(opt_state: Any, params: Any) -> dict[str, np.ndarray]:
    """Return the histograms that `watch(histogram=True)` took last, by name. It waits for the device.

    Args:
      opt_state: any pytree that contains the state of a `watch`.
      params: the parameters that `init` was given.

    Returns:
      A mapping from names, such as `gradients/decoder/kernel`, to int `(bins,)`: the number of elements with an
      absolute value below 1e-12, then in bins of half a decade, [1e-12, 3.2e-12) and so on, and last from 1e4 on (NaN
      and infinity included). Where a mask hides leaves, they are numbered. With several watches, their places in the
      state come first, as in `metrics`.

    Raises:
      ValueError: if there is no such state, or it has no histograms.

    Example:
      >>> import jax.numpy as jnp, novoclip, optax
      >>> optimizer = novoclip.watch(optax.sgd(1.0), of=["gradients"], histogram=True)
      >>> params = jnp.zeros(4)
      >>> updates, state = optimizer.update(jnp.array([0.0, 2.0, 2.5, 1e5]), optimizer.init(params), params)
      >>> counts = histograms(state, params)["gradients/"]
      >>> print(counts[0], counts[25], counts[-1])
      1 2 1
    """
    watched = with_places(states_of(opt_state, WatchState))
    names = [str(path) for path, _ in named_leaves(params)]
    found: dict[str, np.ndarray] = {}
    for place, _, state in watched:
        for tree, figures in state.seen.items():
            counts = np.asarray(figures.get("histogram", np.zeros((0, 0))))
            # With a mask there are fewer: numbers in place of names, as in `novoclip.metrics`.
            own = names if len(counts) == len(names) else map(str, range(len(counts)))
            found |= {
                "/".join(filter(None, (place, tree))) + f"/{name}": row for name, row in zip(own, counts, strict=True)
            }
    if not found:
        msg = "opt_state must hold the state of a watch(..., histogram=True)"
        raise ValueError(msg)
    return found
