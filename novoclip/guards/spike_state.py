"""The state of `skip_spikes` and `protect`."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.counting import start_leaf_counts
from novoclip.ranges import no_limit


class SpikeState(NamedTuple):
    """The state of `skip_spikes`.

    Attributes:
      steps: int32, steps seen; stops at the largest int32, as the other counters do.
      skipped: int32, steps skipped, for a spike or because something was not finite.
      nonfinite: int32, those among them with a gradient norm or a loss that was not finite.
      released: int32, spikes let through, clipped, after too many in a row.
      spikes_in_a_row: int32, the latest spikes without a usual step between them.
      norm: the gradient's norm at the last step.
      limit: its limit then.
      value_limit: that of the loss, if there was one.
      norm_limit_state: what the Limit learned from the norms of steps that were not skipped.
      value_limit_state: the same of the losses; `()` with `value_limit=False`.
      inner: the optimizer's own.
      leaf_steps: int32 `(leaves,)`, steps in which that leaf was not finite. This and the next two are `()` in a
        state saved by 0.1.0.
      leaf_last: int32 `(leaves,)`, the last of them, counted from 1; 0 for none.
      skipped_in_a_row: int32, how many of the latest steps in a row were skipped.
      origin: which limits made the state; it holds no array.
      clip_limit: that of steps that are not skipped, with `clip=`; this and the next two are `()` without.
      clip_limit_state: what the Limit of `clip=` learned from.
      clipped: int32, steps that were not skipped but clipped.
      norm_spikes: int32, steps whose norm was above its limit. This and the next are `()` in a state saved by 0.1.0.
      value_spikes: int32, steps whose loss was above its limit; `()` with `value_limit=False`.
    """

    steps: jax.Array
    skipped: jax.Array
    nonfinite: jax.Array
    released: jax.Array
    spikes_in_a_row: jax.Array
    norm: jax.Array
    limit: jax.Array
    value_limit: jax.Array
    norm_limit_state: Any
    value_limit_state: Any
    inner: Any
    leaf_steps: Any = ()
    leaf_last: Any = ()
    skipped_in_a_row: Any = ()
    origin: Any = ()
    clip_limit: Any = ()
    clip_limit_state: Any = ()
    clipped: Any = ()
    norm_spikes: Any = ()
    value_spikes: Any = ()


def start_state(
    params: optax.Params,
    norm: Any,
    norm_limit_state: Any,
    value_limit_state: Any,
    clip_state: Any,
    inner: Any,
    origin: Any,
) -> SpikeState:
    """Return the first state, given those of the limits and of the optimizer; None for a limit that there is not."""
    zero = functools.partial(jnp.zeros, ())
    infinite = functools.partial(jnp.full, (), no_limit(norm.dtype), norm.dtype)
    leaf_steps, leaf_last = start_leaf_counts(params)
    no_values, no_clip = value_limit_state is None, clip_state is None
    return SpikeState(
        steps=zero(jnp.int32),
        skipped=zero(jnp.int32),
        nonfinite=zero(jnp.int32),
        released=zero(jnp.int32),
        spikes_in_a_row=zero(jnp.int32),
        norm=zero(norm.dtype),
        limit=infinite(),
        value_limit=infinite(),
        norm_limit_state=norm_limit_state,
        value_limit_state=() if no_values else value_limit_state,
        inner=inner,
        leaf_steps=leaf_steps,
        leaf_last=leaf_last,
        skipped_in_a_row=zero(jnp.int32),
        origin=origin,
        clip_limit=() if no_clip else infinite(),
        clip_limit_state=() if no_clip else clip_state,
        clipped=() if no_clip else zero(jnp.int32),
        norm_spikes=zero(jnp.int32),
        value_spikes=() if no_values else zero(jnp.int32),
    )
