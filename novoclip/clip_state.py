"""The state of a clipping rule, and its counts of what was clipped."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from novoclip.counting import count_in_a_row, safe_increment
from novoclip.furthest import furthest
from novoclip.leaves import named_leaves
from novoclip.mesh import across_devices, axis_size, leaf_axes
from novoclip.ranges import limits_as, no_limit
from novoclip.rounding import is_beyond
from novoclip.slices import Slices, places_of


class ClipState(NamedTuple):
    """What a clipping rule knows after a step; see `novoclip.metrics` to read it.

    Attributes:
      steps: int32, steps taken; stops at the largest int32, as the other two counters do.
      norms: norms of the last step's blocks before clipping, a scalar or a vector; for `per="unit"` a vector with one
        for each leaf, of the unit that was furthest above its limit (of several alike, their mean); `()` for
        `per="element"`, as are `limits`.
      limits: the limits of these blocks at the last step. A block whose norm was not finite keeps its own.
      fraction: float32, share of the blocks that were beyond their limit at the last step
        (per element, at the last step that was finite).
      clipped: int32, steps in which any block was.
      nonfinite: int32, steps in which any block's norm was not finite, or its limit NaN.
        For `per="element"`, these three are `()` unless counting was asked for.
      limit_state: the state of the Limit.
      origin: which rule made the state; it holds no array.
      nonfinite_in_a_row: int32, how many of the latest steps in a row were; `()` in a state saved by 0.1.0.
    """

    steps: jax.Array
    norms: Any
    limits: Any
    fraction: Any
    clipped: Any
    nonfinite: Any
    limit_state: Any
    origin: Any = ()
    nonfinite_in_a_row: Any = ()


def start_counts(state: ClipState) -> ClipState:
    """Return the state with its four counts at 0."""
    zeros = {name: jnp.zeros((), jnp.int32) for name in ("clipped", "nonfinite", "nonfinite_in_a_row")}
    return state._replace(fraction=jnp.zeros((), jnp.float32), **zeros)


def check_counts(state: ClipState, *, counting: bool) -> None:
    """Raise if a state has counts and the rule does not count, or the other way round."""
    if isinstance(state.clipped, tuple) == counting:
        msg = f"this state was made with count={not counting}, the rule with count={counting}: call init again"
        raise ValueError(msg)


def start_norms(state: ClipState, norms: Any) -> ClipState:
    """Return the state with norms of 0 and no limits, from the shapes of norms that are not those of elements."""
    shape, dtype = norms_shown(norms)
    return state._replace(norms=jnp.zeros(shape, dtype), limits=jnp.full(shape, no_limit(dtype), dtype))


def norms_shown(norms: Any) -> tuple[tuple[int, ...], Any]:
    """Return the shape and dtype of the norms that a state shows: those of an array, or one for each of several."""
    if isinstance(norms, Slices):
        leaves = sum(map(len, places_of(norms)))
        return (leaves,), norms.arrays[0].dtype
    return norms.shape, norms.dtype


def advance_blocks(state: ClipState, norms: Any, limits: Any, roundings: Any, *, counting: bool) -> ClipState:
    """Return the state with this step's norms, their limits and, if asked for, what was beyond them.

    Args:
      state: that of the step before.
      norms: one array, or Slices.
      limits: likewise.
      roundings: likewise numbers; see `rounding_of`.
      counting: whether to count.
    """
    dtype = state.norms.dtype
    if isinstance(norms, Slices):
        seen, bounds, beyond, spoilt, count = furthest(norms, limits, roundings, norms_shown(norms)[1])
    else:
        finite = jnp.isfinite(norms) & ~jnp.isnan(limits)
        beyond = jnp.sum(finite & is_beyond(norms, limits, roundings), dtype=jnp.float32)
        seen, bounds, spoilt, count = norms, limits, jnp.sum(~finite, dtype=jnp.float32), norms.size
    bounds = jnp.where(jnp.isfinite(seen), limits_as(bounds, dtype), state.limits)
    state = state._replace(norms=seen.astype(dtype), limits=bounds)
    return count_blocks(state, beyond, spoilt, count) if counting else state


def count_blocks(state: ClipState, beyond: jax.Array, spoilt: jax.Array, count: int) -> ClipState:
    """Return the state with a step counted in which some of `count` blocks were beyond their limits, or spoilt."""
    return state._replace(
        fraction=(beyond / float(max(count, 1))).astype(state.fraction.dtype),
        clipped=safe_increment(state.clipped, beyond > 0),
        nonfinite=safe_increment(state.nonfinite, spoilt > 0),
        nonfinite_in_a_row=count_in_a_row(state.nonfinite_in_a_row, spoilt > 0),
    )


def advance_element_counts(state: ClipState, norms: Any, limits: Any) -> ClipState:
    """Return the state with this step's numbers counted, or the step as not finite if any is not."""

    # |d| + d is above 0 where d is; not maximum(d, 0), nor a comparison, which XLA's CPU backend
    # writes out before it sums. n / n is NaN where n is not finite; n - n may be taken for 0 instead.
    def term(n: jax.Array, c: jax.Array) -> jax.Array:
        excess = n - jnp.minimum(c, jnp.finfo(c.dtype).max)
        return jnp.sum(jnp.sign(jnp.abs(excess) + excess) * n / (n + jnp.finfo(n.dtype).tiny))

    leaves = named_leaves(norms)
    over = [leaf_axes(*leaf) for leaf in leaves]
    terms = across_devices(jax.tree.leaves(jax.tree.map(term, norms, limits)), over, jnp.sum)
    size = sum(leaf.size * axis_size(axes) for (_, leaf), axes in zip(leaves, over, strict=True))
    beyond = sum((part.astype(jnp.float32) for part in terms), jnp.zeros((), jnp.float32))
    finite = jnp.isfinite(beyond)
    return state._replace(
        fraction=jnp.where(finite, beyond / float(max(size, 1)), state.fraction).astype(state.fraction.dtype),
        clipped=safe_increment(state.clipped, finite & (beyond > 0.25)),
        nonfinite=safe_increment(state.nonfinite, ~finite),
        nonfinite_in_a_row=count_in_a_row(state.nonfinite_in_a_row, ~finite),
    )
