"""The RMSprop optimizer, also centered, also with momentum."""

from __future__ import annotations

from typing import Any

import optax

from novoclip.optimizers.algorithm import optimizer
from novoclip.optimizers.rms import rmsprop_algorithm
from novoclip.optimizers.step_momentum import momentum_of_steps
from novoclip.typing import Clip, DecayMode, Mask, Scalar, ScalarOrSchedule, SkipNonfinite


def rmsprop(
    learning_rate: ScalarOrSchedule,
    decay: ScalarOrSchedule = 0.9,
    eps: ScalarOrSchedule = 1e-8,
    initial_scale: Scalar = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: ScalarOrSchedule | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
    *,
    nu_dtype: Any = None,
    clip: Clip = None,
    weight_decay: ScalarOrSchedule | None = None,
    weight_decay_mask: Mask = None,
    weight_decay_mode: DecayMode = "decoupled",
    nonfinite: SkipNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    """The RMSprop optimizer, with optional momentum, clipping and weight decay.

    w <- w - lr u, with the direction u of `scale_by_rms` or, centered, `scale_by_stddev`, plus weight decay; with
    momentum w <- w - b_t, where b_t = momentum b_{t-1} + lr_t u_t, or w <- w - (lr_t u_t + momentum b_t) with nesterov.

    Args:
      learning_rate: at least 0: a float, an array or a schedule. Skipped steps do not advance schedules.
      decay: decay rate of v, in [0, 1): a float, an array or a schedule.
      eps: added to v, or to its root, at least 0: a float, an array or a schedule.
      initial_scale: v_0, at least 0: a float or an array.
      eps_in_sqrt: whether eps is added inside the root, as in Optax and Keras, or outside, as in torch.
      centered: whether to divide by the standard deviation. Under a constant gradient it falls to 0.
      momentum: decay rate of b in [0, 1]: a float, an array or a schedule; None for no momentum.
      nesterov: whether to use Nesterov momentum, which looks one step ahead.
      bias_correction: whether to divide v, and m if centered, by 1 - decay^t.
      nu_dtype: dtype of the root of the second moment; None for float32 (float64 for float64 parameters). 16 bits,
        rounded to nearest, are too few for a decay rate of 0.999: it hardly moves.
      clip: a clipping rule that is applied to the gradients first, such as `novoclip.clip_by_global_norm(1.0)`.
      weight_decay: strength of the weight decay, at least 0: a float, an array or a schedule; None or 0 for none.
      weight_decay_mask: which parameters decay: a pytree of booleans, or a function of the parameters that returns one;
        None for all.
      weight_decay_mode: "decoupled" adds weight_decay * w to the update, before the learning rate (AdamW); "coupled"
        adds it to the clipped gradients (L2 regularization).
      nonfinite: "skip" skips a step whose gradients are not finite: updates are 0, and of the state only counters
        change; "propagate" does not check.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are an `RMSpropState`, with momentum a
      `StepMomentumState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown. In `update`: if there is
        weight decay and the parameters are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = rmsprop(0.1, decay=0.75)
      >>> print(optimizer.update(jnp.array([3.0, -4.0]), optimizer.init(jnp.zeros(2)))[0].round(3))
      [-0.2  0.2]

    References:
      Hinton, `Lecture 6a of Neural networks for machine learning
      <https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf>`_, 2012. Graves, `Generating
      sequences with recurrent neural networks <https://arxiv.org/abs/1308.0850>`_, 2013 (centered).

    Parameters, order and defaults are those of `optax.rmsprop`; the differences are those of `adam`. torch's
    `RMSprop` is `rmsprop(lr, 0.99, eps_in_sqrt=False)`; its momentum does not hold the learning rates.
    """
    algorithm = rmsprop_algorithm(decay, eps, initial_scale, eps_in_sqrt, bias_correction, nu_dtype, centered=centered)
    if momentum is not None:
        algorithm = momentum_of_steps(algorithm, momentum, nesterov)
    elif nesterov:
        msg = f"nesterov={nesterov!r} has no effect without momentum: write rmsprop(..., momentum=0.9, nesterov=True)"
        raise ValueError(msg)
    return optimizer(
        algorithm,
        learning_rate,
        clip=clip,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        weight_decay_mode=weight_decay_mode,
        nonfinite=nonfinite,
    )
