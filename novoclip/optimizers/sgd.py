"""The SGD optimizer: gradient descent, with and without momentum."""

from __future__ import annotations

from typing import Any

import optax

from novoclip.arguments import check_flag
from novoclip.optimizers.algorithm import Algorithm, optimizer
from novoclip.optimizers.kept import check_dtype
from novoclip.optimizers.momentum import momentum_algorithm
from novoclip.typing import Clip, DecayMode, Mask, ScalarOrSchedule, SkipNonfinite


def sgd(
    learning_rate: ScalarOrSchedule,
    momentum: ScalarOrSchedule | None = None,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
    *,
    dampening: ScalarOrSchedule | None = None,
    clip: Clip = None,
    weight_decay: ScalarOrSchedule | None = None,
    weight_decay_mask: Mask = None,
    weight_decay_mode: DecayMode = "decoupled",
    nonfinite: SkipNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    """The SGD optimizer: stochastic gradient descent, with optional momentum, clipping and weight decay.

    w <- w - lr u, plus weight decay, where u = g, or with momentum
    v_t = momentum v_{t-1} + (1 - dampening) g_t;  u = v_t, or g_t + momentum v_t with nesterov.

    Args:
      learning_rate: at least 0: a float, an array or a schedule. Skipped steps do not advance schedules.
      momentum: decay rate of v in [0, 1]: a float, an array or a schedule; None for no momentum.
      nesterov: whether to use Nesterov momentum, which looks one step ahead.
      accumulator_dtype: dtype of the accumulator v; None for float32 (float64 for float64 parameters).
      dampening: in [0, 1]: a float, an array or a schedule; None for 0. It must be None with nesterov.
      clip: a clipping rule that is applied to the gradients first, such as `novoclip.clip_by_global_norm(1.0)`.
      weight_decay: strength of the weight decay, at least 0: a float, an array or a schedule; None or 0 for none.
      weight_decay_mask: which parameters decay: a pytree of booleans, or a function of the parameters that returns one;
        None for all.
      weight_decay_mode: "decoupled" adds weight_decay * w to the update, before the learning rate (AdamW); "coupled"
        adds it to the clipped gradients (L2 regularization).
      nonfinite: "skip" skips a step whose gradients are not finite: updates are 0, and of the state only counters
        change; "propagate" does not check.

    Returns:
      A GradientTransformation with an `OptimizerState`, whose `moments` are a `MomentumState` with momentum;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, a name is unknown, or an argument of momentum is given without
        `momentum`. In `update`: if there is weight decay and the parameters are absent.

    Example:
      >>> import jax.numpy as jnp, novoclip
      >>> optimizer = sgd(0.1, momentum=0.9, clip=novoclip.clip_by_value(1.0))
      >>> gradient = jnp.array([0.5, 30.0])
      >>> print(optimizer.update(gradient, optimizer.init(gradient))[0])
      [-0.05 -0.1 ]

    References:
      Robbins, Monro, `A stochastic approximation method
      <https://doi.org/10.1214/aoms/1177729586>`_, 1951.

    Parameters, order and defaults are those of `optax.sgd`. Differences: a step that is not finite is skipped, and the
    accumulator is float32 whatever the parameters are. torch's `SGD` adds weight decay before the momentum:
    weight_decay_mode="coupled".

    accumulator_dtype also takes "int8" and "bfloat16_stochastic", which `adam` describes.
    """
    if momentum is None:
        check_flag("nesterov", nesterov)
        check_dtype("accumulator_dtype", accumulator_dtype, random=True)
        given = {"nesterov": nesterov or None, "accumulator_dtype": accumulator_dtype, "dampening": dampening}
        unused = [f"{name}={value!r}" for name, value in given.items() if value is not None]
        if unused:
            msg = f"{', '.join(unused)} has no effect without momentum: write sgd(..., momentum=0.9), say"
            raise ValueError(msg)
        algorithm = Algorithm(lambda _: (), lambda *_: (), lambda gradients, *_: gradients, "sgd")
    else:
        algorithm = momentum_algorithm(momentum, "heavy_ball", dampening, nesterov, accumulator_dtype, "momentum")
    return optimizer(
        algorithm,
        learning_rate,
        clip=clip,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        weight_decay_mode=weight_decay_mode,
        nonfinite=nonfinite,
    )
