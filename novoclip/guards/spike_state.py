"""The state of `skip_spikes` and `protect`."""

from typing import Any, NamedTuple

import jax


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
