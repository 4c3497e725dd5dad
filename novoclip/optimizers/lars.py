"""The LARS optimizer: momentum whose steps are in proportion to the norm of the weights."""

from __future__ import annotations

from typing import Any

import optax

from novoclip.arguments import check_number
from novoclip.granularity import resolve_fixed
from novoclip.optimizers.algorithm import Algorithm, optimizer
from novoclip.optimizers.step import MASK, Step, add_decay, check_decay
from novoclip.optimizers.step_momentum import momentum_of_steps
from novoclip.optimizers.trust import RATIO_MASK, trusted
from novoclip.typing import Clip, Granularity, Mask, ScalarOrSchedule, SkipNonfinite


def _lars(
    weight_decay: ScalarOrSchedule,
    weight_decay_mask: Mask,
    trust_coefficient: ScalarOrSchedule,
    eps: ScalarOrSchedule,
    trust_ratio_mask: Mask,
    momentum: ScalarOrSchedule,
    nesterov: bool,
    per: Granularity,
    accumulator_dtype: Any,
) -> Algorithm:
    check_decay(weight_decay, weight_decay_mask)
    check_number("trust_coefficient", trust_coefficient)
    check_number("eps", eps)
    blocks = resolve_fixed(per)

    def direction(gradients: Any, state: Any, step: Step) -> Any:
        del state
        pulled = add_decay(gradients, step, rate=weight_decay, mask=weight_decay_mask)
        return trusted(pulled, step, blocks, trust_coefficient, eps, trust_ratio_mask)

    masks = ((MASK, weight_decay_mask), (RATIO_MASK, trust_ratio_mask))
    algorithm = Algorithm(lambda _: (), lambda *_: (), direction, f"lars per {blocks.name}", masks=masks)
    return momentum_of_steps(algorithm, momentum, nesterov, accumulator_dtype)


def lars(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Mask = True,
    trust_coefficient: ScalarOrSchedule = 0.001,
    eps: ScalarOrSchedule = 0.0,
    trust_ratio_mask: Mask = True,
    momentum: ScalarOrSchedule = 0.9,
    nesterov: bool = False,
    *,
    per: Granularity = "tensor",
    accumulator_dtype: Any = None,
    clip: Clip = None,
    nonfinite: SkipNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    """The LARS optimizer: momentum with layer-wise steps for large batches, and optional clipping.

    p = g + weight_decay w;  for each tensor s = lr trust_coefficient p ||w|| / (||p|| + eps), and lr p where one of
    the two norms is 0;  v_t = momentum v_{t-1} + s_t;  w <- w - v_t, or w - (s_t + momentum v_t) with nesterov.

    Args:
      learning_rate: at least 0: a float, an array or a schedule. Skipped steps do not advance schedules.
      weight_decay: strength of the weight decay, at least 0: a float, an array or a schedule; None or 0 for none.
      weight_decay_mask: which parameters decay: a pytree of booleans, or a function of the parameters that returns one;
        None for all.
      trust_coefficient: at least 0: a float, an array or a schedule.
      eps: added to the norm of p, at least 0: a float, an array or a schedule.
      trust_ratio_mask: which parameters have steps in proportion to their norm: a pytree of booleans, or a function
        of the parameters that returns one. For the others s = lr p.
      momentum: decay rate of v in [0, 1]: a float, an array or a schedule.
      nesterov: whether to use Nesterov momentum, which looks one step ahead.
      per: the blocks that have one second moment or norm: "tensor", "tree" (the whole pytree), "unit", or a Measure,
        such as `novoclip.tensors(stacked=1)`, whose own norm is not used.
      accumulator_dtype: dtype of the accumulator v; None for float32 (float64 for float64 parameters).
      clip: a clipping rule that is applied to the gradients first, such as `novoclip.clip_by_global_norm(1.0)`.
      nonfinite: "skip" skips a step whose gradients are not finite: updates are 0, and of the state only counters
        change; "propagate" does not check.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are a `StepMomentumState`; `update` needs the
      parameters, and updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown. In `update`: if the parameters are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = lars(1.0)
      >>> params = jnp.array([6.0, 8.0])
      >>> print(optimizer.update(jnp.array([3.0, 4.0]), optimizer.init(params), params)[0].round(5))
      [-0.006 -0.008]

    References:
      You, Gitman, Ginsburg, `Large batch training of convolutional networks
      <https://arxiv.org/abs/1708.03888>`_, 2017.

    Parameters, order and defaults are those of `optax.lars`; the differences are those of `sgd`. The paper divides by
    ||g|| + weight_decay ||w||; here, as in Optax, it is the norm of the sum.
    """
    decay_mask, ratio_mask = (None if mask is True else mask for mask in (weight_decay_mask, trust_ratio_mask))
    algorithm = _lars(
        weight_decay,
        decay_mask,
        trust_coefficient,
        eps,
        ratio_mask,
        momentum,
        nesterov,
        per,
        accumulator_dtype,
    )
    return optimizer(algorithm, learning_rate, clip=clip, nonfinite=nonfinite)
