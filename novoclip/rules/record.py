"""A transform that only watches."""

from typing import Any

import jax.numpy as jnp
import optax

from novoclip.clip_state import ClipState
from novoclip.clipping import clip
from novoclip.granularity import resolve_blocks
from novoclip.limits import constant
from novoclip.measure import Measure


def record(*, per: str | Measure = "tree", norm: str = "l2", mask: Any = None) -> optax.GradientTransformationExtraArgs:
    """Pass gradients on unchanged and keep their norms in the state.

    Args:
      per: the blocks: "tree", "tensor", "unit" or a Measure.
      norm: "l1", "l2", "max" or "rms".
      mask: which leaves are measured: a pytree of booleans that is a prefix of the parameters, or a function that
        returns one. None for all.

    Returns:
      A GradientTransformation with a `ClipState` whose limits are infinite: `norms` are
      those of the last step, `nonfinite` counts the steps with a norm that was not finite.

    Raises:
      TypeError: if `per` is neither a string nor a Measure.
      ValueError: if a name is unknown, or `per` is "element", whose norms are not kept.

    Example:
      >>> import jax.numpy as jnp
      >>> watch = record(per="tensor")
      >>> gradients = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([1.0])}
      >>> updates, state = watch.update(gradients, watch.init(gradients))
      >>> print(state.norms)
      [5. 1.]
    """
    watch = clip(resolve_blocks(per, norm), constant(jnp.inf)._replace(name="record"), mask=mask)

    def update(
        updates: optax.Updates, state: ClipState, params: optax.Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, ClipState]:
        # The clipped gradients are not used, so that XLA computes nothing but the norms.
        return updates, watch.update(updates, state, params, **extra)[1]

    return optax.GradientTransformationExtraArgs(watch.init, update)
