"""The state of a clipping rule: the last norms and limits, and counts of the steps that were clipped."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from novoclip.counting import count_in_a_row, safe_increment
from novoclip.furthest import furthest
from novoclip.leaves import named_leaves
from novoclip.mesh import across_devices, axis_size, leaf_axes
from novoclip.ranges import limits_as, no_limit
from novoclip.rounding import is_beyond
from novoclip.safe_math import all_true
from novoclip.slices import Slices, places_of


class ClipState(NamedTuple):
    """The state of a clipping rule: the last norms and limits, and counts of steps; read it by `novoclip.metrics`.

    Attributes:
      steps: int32, number of updates. It stops at the largest int32, as do the other counts.
      norms: norms of the blocks at the last step, before clipping: a scalar or a vector. With `per="unit"`, a vector
        with one entry per leaf: the norm of the unit that was furthest above its limit, or the mean of several that
        were equally far. With `per="element"`, `()`.
      limits: limits of these blocks at the last step. A block whose norm was not finite keeps its previous limit. With
        `per="element"`, `()`.
      fraction: float32, fraction of the blocks that were beyond their limit at the last step (per element, at the last
        finite step).
      clipped: int32, number of steps in which any block was beyond its limit.
      nonfinite: int32, number of steps in which any block had a norm that was not finite, or a limit of NaN.
        `fraction`, `clipped` and `nonfinite` are `()` if the rule does not count them, which is the default per
        element.
      limit_state: the state of the Limit.
      origin: which rule made the state. It holds no array.
      nonfinite_in_a_row: int32, how many of the latest steps in a row `nonfinite` counted; `()` in a state saved by
        version 0.1.0.
      norms_after: the norms of `norms` after clipping, as the rule's shape makes them; `()` where `norms` is, in rules
        whose limits are those of elements, and in a state saved by version 0.1.0.
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
    norms_after: Any = ()


def start_counts(state: ClipState) -> ClipState:
    """Return the state with all counts at 0."""
    zeros = {name: jnp.zeros((), jnp.int32) for name in ("clipped", "nonfinite", "nonfinite_in_a_row")}
    return state._replace(fraction=jnp.zeros((), jnp.float32), **zeros)


def check_counts(state: ClipState, *, counting: bool) -> None:
    """Raise a ValueError if a state has counts and the rule does not count, or the reverse."""
    if isinstance(state.clipped, tuple) == counting:
        msg = f"the state was made with count={not counting}, but this rule has count={counting}: call init again"
        raise ValueError(msg)


def start_norms(state: ClipState, norms: Any) -> ClipState:
    """Return the state with norms of 0 and no limits, from the shapes of norms other than those of elements."""
    shape, dtype = norms_shown(norms)
    return state._replace(norms=jnp.zeros(shape, dtype), limits=jnp.full(shape, no_limit(dtype), dtype))


def norms_shown(norms: Any) -> tuple[tuple[int, ...], Any]:
    """Return the shape and dtype of the norms in a state: those of the array, or one entry per leaf of Slices."""
    if isinstance(norms, Slices):
        leaves = sum(map(len, places_of(norms)))
        return (leaves,), norms.arrays[0].dtype
    return norms.shape, norms.dtype


def advance_blocks(state: ClipState, norms: Any, limits: Any, roundings: Any, *, counting: bool) -> ClipState:
    """Return the state with the norms of this step, their limits and, if `counting`, the counts of blocks.

    Args:
      state: the state of the previous step.
      norms: one array, or Slices.
      limits: the limits of the norms, in the same form.
      roundings: by how much a norm may be above its limit by rounding, as a fraction of the limit: a float, or arrays
        in the form of the norms; see `rounding_of`.
      counting: whether to update the counts.
    """
    dtype = state.norms.dtype
    if isinstance(norms, Slices):
        seen, bounds, beyond, spoilt, count = furthest(norms, limits, roundings, norms_shown(norms)[1])
    else:
        finite = jnp.isfinite(norms) & ~jnp.isnan(limits)
        beyond = jnp.sum(finite & is_beyond(norms, limits, roundings), dtype=jnp.float32)
        seen, bounds, spoilt, count = norms, limits, ~all_true(finite), norms.size
    bounds = jnp.where(jnp.isfinite(seen), limits_as(bounds, dtype), state.limits)
    state = state._replace(norms=seen.astype(dtype), limits=bounds)
    return count_blocks(state, beyond, spoilt, count) if counting else state


def count_blocks(state: ClipState, beyond: jax.Array, spoilt: jax.Array, count: int) -> ClipState:
    """Return the state after a step with `count` blocks, `beyond` over their limits; `spoilt`: if any is not finite."""
    return state._replace(
        fraction=(beyond / float(max(count, 1))).astype(state.fraction.dtype),
        clipped=safe_increment(state.clipped, beyond > 0),
        nonfinite=safe_increment(state.nonfinite, spoilt),
        nonfinite_in_a_row=count_in_a_row(state.nonfinite_in_a_row, spoilt),
    )


def advance_element_counts(state: ClipState, norms: Any, limits: Any) -> ClipState:
    """Return the state with the elements beyond their limits counted, or a step that is not finite."""

    # |d| + d is positive where d is. XLA's CPU backend would write maximum(d, 0), or a comparison, to memory
    # before it sums. n / n is NaN where n is not finite; XLA may simplify n - n to 0.
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
