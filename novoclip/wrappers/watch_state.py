"""The state of `watch`, and the score of spikes in it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from novoclip import limits
from novoclip.counting import safe_increment
from novoclip.guards.losses import never_zero
from novoclip.learning import freeze_nonfinite
from novoclip.leaves import unwrapped

WINDOW = 128
NORM = freeze_nonfinite(limits.deviation(6.0, window=WINDOW, warmup=8, learn="raw"), elementwise=False)
VALUE = freeze_nonfinite(limits.deviation(6.0, window=WINDOW, warmup=8, learn="raw"), elementwise=False, floor=None)


class WatchState(NamedTuple):
    """The state of `watch`.

    Attributes:
      steps: int32, steps taken.
      inner: the state of the transform inside.
      seen_at: int32, the step that `seen` is of, counted from 1; 0 before the first.
      seen: what was measured then: of "gradients", "updates", "params" and so on, "norm", "rms", "max" and on request
        "histogram", each an array with one entry (or row) per block.
      norm_state: the window of the norms that spikes are judged by; `()` if nothing inside shows a norm.
      value_state: the same of the losses.
      judged: int32, steps with a norm or a loss that could be judged.
      spikes: int32, those among them that were spikes.
      recent: bool `(128,)`, whether the latest steps were spikes.
      origin: which transform made the state; it holds no array.
    """

    steps: jax.Array
    inner: Any
    seen_at: jax.Array
    seen: Any
    norm_state: Any
    value_state: Any
    judged: jax.Array
    spikes: jax.Array
    recent: jax.Array
    origin: Any = ()


def start_score(norm: Any) -> dict[str, Any]:
    """Return the fields of the score before the first step; `norm` is an array like the norms inside, or None."""
    scalar: Any = jax.ShapeDtypeStruct((), jnp.float32)
    return {
        "norm_state": () if norm is None else NORM.init(scalar),
        "value_state": VALUE.init(scalar),
        "judged": jnp.zeros((), jnp.int32),
        "spikes": jnp.zeros((), jnp.int32),
        "recent": jnp.zeros((WINDOW,), bool),
    }


def score(state: WatchState, norm: jax.Array | None, value: jax.Array | None) -> dict[str, Any]:
    """Return the fields of the score after a step with this norm and this loss.

    A step is a spike if its norm or its loss is above the mean of the 128 before it plus 6 standard deviations, once
    there are 8, or if it is not finite.
    """
    found: dict[str, Any] = {}
    spike, judged = jnp.zeros((), bool), norm is not None or value is not None
    losses = None if value is None else never_zero(value)
    for field, limit, number in (("norm_state", NORM, norm), ("value_state", VALUE, losses)):
        found[field] = getattr(state, field)
        if number is not None and len(found[field]):
            seen = number.astype(jnp.float32)
            bound, found[field] = limit.update(seen, found[field], None, step=state.steps)
            spike = spike | (seen > bound) | ~jnp.isfinite(seen)
    slots = jnp.arange(WINDOW) == state.judged % WINDOW
    return found | {
        "judged": safe_increment(state.judged, jnp.asarray(judged)),
        "spikes": safe_increment(state.spikes, spike),
        "recent": jnp.where(slots & judged, spike, state.recent),
    }


def score_figures(state: WatchState) -> dict[str, jax.Array]:
    """Return the score since the start and of the latest 128 steps, with the number of steps that were judged."""
    judged, spikes, flags = (jnp.asarray(unwrapped(x)) for x in (state.judged, state.spikes, state.recent))
    share, recent = spikes / jnp.maximum(judged, 1), jnp.sum(flags) / jnp.clip(judged, 1, WINDOW)
    return {"judged": judged, "spikes": spikes, "spike_score": share, "spike_score_128": recent}
