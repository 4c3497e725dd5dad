"""One line that protects a run whose clip threshold nobody has chosen."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from novoclip import limits
from novoclip.guards.spikes import checked_limit, skip_spikes
from novoclip.limit import Limit
from novoclip.typing import Mask


def protect(
    inner: optax.GradientTransformation,
    *,
    clip: Limit | float | bool = True,
    skip: Limit | float | bool = True,
    value_limit: Limit | float | bool | None = None,
    max_in_a_row: int = 16,
    mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Protect any optimizer from exploding gradients, spikes and NaN, without a threshold to choose.

    Gradients are clipped at three times the running mean of their recent global norms, from the second step on. From
    the eighth on, a step is skipped if its norm is above four times such a mean, or if `update(..., value=loss)` is
    given and the loss is above mean + 6 standard deviations of the latest 128. A step with NaN or infinity is skipped
    from the first on. A skipped step gives zero updates and leaves the state of `inner` as it is. After `max_in_a_row`
    spikes in a row the level has changed: steps go through, clipped, and the means follow.

    It is `skip_spikes` with these arguments, which you can also write by hand::

        novoclip.skip_spikes(
            inner,
            novoclip.limits.running_mean(4.0, decay=0.9, warmup=7),
            clip=novoclip.limits.running_mean(3.0, decay=0.9),
        )

    The norm of the first step is judged by nothing but being finite, and the means begin with it. A first norm 20 times
    too large or too small hardly matters. One that is 1000 times too large leaves spikes of 100 times the usual norm
    unseen for about 25 steps. One that is 1000 times too small has the gradients clipped, or skipped, for about 40
    steps, since a mean grows by at most 1.2 (clip) or 1.3 (skip) per step. If the first gradients of your model are
    like that, add a fixed limit: `clip=limits.tighter(limits.constant(1.0), limits.running_mean(3.0))`, with `limits`
    from novoclip.

    Args:
      inner: the optimizer: any `optax.GradientTransformation`.
      clip: the Limit at which gradients are clipped, or a number, such as 1.0; True for the default, False for none.
      skip: the Limit of the norm above which a step is skipped, or a number; True for the default, False to skip only
        what is not finite.
      value_limit: the Limit of the loss, or a number; None for the default, False to ignore the loss.
      max_in_a_row: how many spikes in a row are skipped, at least 1.
      mask: which leaves count: a pytree of booleans, a prefix of the parameters, or a function of the gradients
        that returns one; None for all.

    Returns:
      A GradientTransformation with a `SpikeState`. `novoclip.metrics` reports the norm, both limits, and the steps
      that were clipped, skipped and not finite; `novoclip.locate_nonfinite` names the leaf that was not finite.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `clip` or `skip` is negative or NaN, `max_in_a_row` is below 1, or `value_limit` is NaN or only for
        norms.

    Example:
      >>> import jax.numpy as jnp, novoclip, optax
      >>> optimizer = protect(optax.sgd(0.1))
      >>> state = optimizer.init(jnp.zeros(1))
      >>> for gradient in (1.0, 100.0, jnp.nan, 1.0):
      ...     updates, state = optimizer.update(jnp.array([gradient]), state)
      ...     print(updates)
      [-0.1]
      [-0.3]
      [0.]
      [-0.1]
      >>> figures = novoclip.metrics(state)
      >>> print(figures["spikes/clipped"], figures["spikes/skipped"])
      1 1

    On the gradient norms of six real trainings all of 32 spikes are skipped or clipped, and no calm step is touched:
    `benchmarks/defaults.py`.
    """
    bound = limits.running_mean(4.0, decay=0.9, warmup=7) if skip is True else skip
    held = limits.running_mean(3.0, decay=0.9) if clip is True else clip
    return skip_spikes(
        inner,
        limits.constant(jnp.inf) if bound is False else checked_limit("skip", bound),
        value_limit=value_limit,
        max_in_a_row=max_in_a_row,
        clip=None if held is False else checked_limit("clip", held),
        mask=mask,
    )
