"""The AdamW optimizer: Adam with decoupled weight decay."""

from __future__ import annotations

from typing import Any

import optax

from novoclip.optimizers.adam import adam
from novoclip.typing import Clip, Mask, ScalarOrSchedule, SkipNonfinite


def adamw(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: Any = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Mask = None,
    *,
    nesterov: bool = False,
    bias_correction: bool = True,
    nu_dtype: Any = None,
    clip: Clip = None,
    nonfinite: SkipNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    """The AdamW optimizer: Adam with decoupled weight decay, and optional clipping.

    w <- w - lr (u + weight_decay w), with the direction u of `scale_by_adam`.

    Args:
      learning_rate: at least 0: a float, an array or a schedule. Skipped steps do not advance schedules.
      b1: decay rate of the first moment m, in [0, 1): a float, an array or a schedule.
      b2: decay rate of the second moment v, in [0, 1): a float, an array or a schedule.
      eps: added to the root of the second moment, at least 0: a float, an array or a schedule.
      eps_root: added to the second moment inside the root, at least 0: a float, an array or a schedule.
      mu_dtype: dtype of m; None for float32 (float64 for float64 parameters).
      weight_decay: strength of the weight decay, at least 0: a float, an array or a schedule; None or 0 for none.
      mask: which parameters decay: a pytree of booleans, or a function of the parameters that returns one; None for
        all.
      nesterov: whether to use Nesterov momentum, which looks one step ahead.
      bias_correction: whether to divide m and v by the weights of the gradients in them. Without, the first steps are
        (1 - b1) / sqrt(1 - b2) times as long: 3.2 times with the defaults.
      nu_dtype: dtype of the root of the second moment; None for float32 (float64 for float64 parameters). 16 bits,
        rounded to nearest, are too few for a decay rate of 0.999: it hardly moves.
      clip: a clipping rule that is applied to the gradients first, such as `novoclip.clip_by_global_norm(1.0)`.
      nonfinite: "skip" skips a step whose gradients are not finite: updates are 0, and of the state only counters
        change; "propagate" does not check.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are an `AdamState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown. In `update`: if the parameters are absent.

    Example:
      >>> import jax.numpy as jnp, novoclip
      >>> optimizer = adamw(1e-3, weight_decay=0.1, mask={"kernel": True, "bias": False})
      >>> params = {"kernel": jnp.array([10.0]), "bias": jnp.array([10.0])}
      >>> updates, state = optimizer.update(params, optimizer.init(params), params)
      >>> print(updates["kernel"], updates["bias"])
      [-0.002] [-0.001]

    References:
      Loshchilov, Hutter, `Decoupled weight decay regularization <https://arxiv.org/abs/1711.05101>`_, 2017.

    Parameters, order and defaults are those of `optax.adamw`, up to `nesterov`; torch's AdamW has weight_decay=0.01.
    The differences are those of `adam`.
    """
    return adam(
        learning_rate,
        b1,
        b2,
        eps,
        eps_root,
        mu_dtype,
        nesterov=nesterov,
        bias_correction=bias_correction,
        nu_dtype=nu_dtype,
        clip=clip,
        weight_decay=weight_decay,
        weight_decay_mask=mask,
        nonfinite=nonfinite,
    )
