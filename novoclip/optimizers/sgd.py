"""Gradient descent."""

from typing import Any

import optax

from novoclip.arguments import Schedulable
from novoclip.optimizers.algorithm import Algorithm, optimizer


def sgd(
    learning_rate: Schedulable,
    *,
    clip: optax.GradientTransformation | None = None,
    weight_decay: Schedulable | None = None,
    weight_decay_mask: Any = None,
    nonfinite: str = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Descend along the gradient.

    w <- w - lr (g + weight_decay w). Its direction is the gradient itself, so that there is no
    `scale_by_sgd`; with a velocity it is `momentum`.

    Args:
      learning_rate: lr, at least 0: a float, an array or a schedule, which counts the steps that were not skipped.
      clip: any rule, applied to the gradient first.
      weight_decay: at least 0, or None: a float, an array or a schedule.
      weight_decay_mask: which parameters decay: a tree of booleans, or a function of the parameters.
      nonfinite: "skip" skips a step with a gradient that is not finite: its updates are 0,
        nothing but two counters moves. "propagate" does not look.

    Returns:
      A GradientTransformation with an `OptimizerState`; updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is negative or NaN, or a name is unknown. In `update`: if there is
        weight decay and the parameters are absent.

    Example:
      >>> import jax.numpy as jnp, novoclip
      >>> descent = sgd(0.1, clip=novoclip.clip_by_value(1.0))
      >>> gradient = jnp.array([0.5, 30.0])
      >>> print(descent.update(gradient, descent.init(gradient))[0])
      [-0.05 -0.1 ]

    References:
      Robbins, Monro, `A stochastic approximation method
      <https://doi.org/10.1214/aoms/1177729586>`_, 1951.
    """
    return optimizer(
        Algorithm(init=lambda _: (), learn=lambda *_: (), direction=lambda gradients, *_: gradients, name="sgd"),
        learning_rate,
        clip=clip,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        nonfinite=nonfinite,
    )
