"""Record gradient norms without clipping."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax

from novoclip import limits
from novoclip.clip_state import ClipState
from novoclip.clipping import clip_by_limit
from novoclip.granularity import resolve_blocks
from novoclip.typing import Granularity, Mask, Norm


def record(*, per: Granularity = "tree", norm: Norm = "l2", mask: Mask = None) -> optax.GradientTransformationExtraArgs:
    """Record gradient norms in the state, and pass gradients on unchanged.

    Args:
      per: the blocks whose norms are recorded: "tree" (the whole pytree), "tensor", "unit" (an output unit) or a
        Measure.
      norm: norm of a block: "l1", "l2" (Euclidean), "max" or "rms". A Measure has its own.
      mask: which leaves are measured: a pytree of booleans that is a prefix of the parameters, or a function that takes
        the parameters or gradients and returns one. None for all.

    Returns:
      A GradientTransformation with a `ClipState` whose limits are infinite. Its `norms` are those of the last step, and
      `nonfinite` counts the steps with a norm that was not finite.

    Raises:
      TypeError: if `per` is neither a string nor a Measure.
      ValueError: if a string is not one of those listed, or `per` is "element", whose norms are not kept.

    Example:
      >>> import jax.numpy as jnp
      >>> watch = record(per="tensor")
      >>> gradients = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([1.0])}
      >>> updates, state = watch.update(gradients, watch.init(gradients))
      >>> print(state.norms)
      [5. 1.]
    """
    watch = clip_by_limit(resolve_blocks(per, norm), limits.constant(jnp.inf)._replace(name="record"), mask=mask)

    def update(
        updates: optax.Updates, state: ClipState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, ClipState]:
        # The clipped gradients are not used, so XLA computes the norms only.
        return updates, watch.update(updates, state, params, **extra)[1]

    return optax.GradientTransformationExtraArgs(watch.init, update)
