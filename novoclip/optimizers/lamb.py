"""The LAMB optimizer: Adam whose steps are in proportion to the norm of the weights."""

from __future__ import annotations

from typing import Any

import optax

from novoclip.granularity import resolve_fixed
from novoclip.optimizers.adam import AdamState, adam_algorithm
from novoclip.optimizers.algorithm import Algorithm, optimizer
from novoclip.optimizers.step import MASK, Step, add_decay, check_decay
from novoclip.optimizers.trust import trusted
from novoclip.typing import Clip, Granularity, Mask, ScalarOrSchedule, SkipNonfinite


def _lamb(
    b1: ScalarOrSchedule,
    b2: ScalarOrSchedule,
    eps: ScalarOrSchedule,
    eps_root: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule,
    mask: Mask,
    per: Granularity,
    mu_dtype: Any,
) -> Algorithm:
    check_decay(weight_decay, mask)
    adam = adam_algorithm(b1, b2, eps, eps_root, mu_dtype)
    blocks = resolve_fixed(per)

    def direction(gradients: Any, state: AdamState, step: Step) -> Any:
        pulled = add_decay(adam.direction(gradients, state, step), step, rate=weight_decay, mask=mask)
        return trusted(pulled, step, blocks)

    return Algorithm(adam.init, adam.learn, direction, f"lamb per {blocks.name}", masks=((MASK, mask),))


def lamb(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-6,
    eps_root: ScalarOrSchedule = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask = None,
    *,
    per: Granularity = "tensor",
    mu_dtype: Any = None,
    clip: Clip = None,
    nonfinite: SkipNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    """The LAMB optimizer: Adam with layer-wise steps for large batches, and optional clipping.

    r = m' / (sqrt(v' + eps_root) + eps) + weight_decay w, as in AdamW;  for each tensor w <- w - lr r ||w|| / ||r||,
    and w - lr r where one of the two norms is 0.

    Args:
      learning_rate: at least 0: a float, an array or a schedule. Skipped steps do not advance schedules.
      b1: decay rate of the first moment m, in [0, 1): a float, an array or a schedule.
      b2: decay rate of the second moment v, in [0, 1): a float, an array or a schedule.
      eps: added to the root of the second moment, at least 0: a float, an array or a schedule.
      eps_root: added to the second moment inside the root, at least 0: a float, an array or a schedule.
      weight_decay: strength of the weight decay, at least 0: a float, an array or a schedule; None or 0 for none.
      mask: which parameters decay: a pytree of booleans, or a function of the parameters that returns one; None for
        all.
      per: the blocks that have one second moment or norm: "tensor", "tree" (the whole pytree), "unit", or a Measure,
        such as `novoclip.tensors(stacked=1)`, whose own norm is not used.
      mu_dtype: dtype of m; None for float32 (float64 for float64 parameters).
      clip: a clipping rule that is applied to the gradients first, such as `novoclip.clip_by_global_norm(1.0)`.
      nonfinite: "skip" skips a step whose gradients are not finite: updates are 0, and of the state only counters
        change; "propagate" does not check.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are an `AdamState`; its `update` needs the
      parameters, and updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown. In `update`: if the parameters are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = lamb(0.1)
      >>> params = jnp.array([3.0, 4.0])
      >>> print(optimizer.update(jnp.array([1.0, -1.0]), optimizer.init(params), params)[0].round(4))
      [-0.3536  0.3536]

    References:
      You et al., `Large batch optimization for deep learning: training BERT in 76 minutes
      <https://arxiv.org/abs/1904.00962>`_, 2019.

    Parameters, order and defaults are those of `optax.lamb`; the differences are those of `adam`. For steps that are
    never longer than Adam's, chain `clip_by_trust_ratio(1.0)` after `scale_by_adam`.
    """
    return optimizer(
        _lamb(b1, b2, eps, eps_root, weight_decay, mask, per, mu_dtype), learning_rate, clip=clip, nonfinite=nonfinite
    )
