"""The StableAdamW optimizer: AdamW with shorter steps where its second moment is out of date."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import check_number
from novoclip.granularity import resolve_fixed
from novoclip.optimizers.adam import AdamState, adam_algorithm
from novoclip.optimizers.algorithm import Algorithm, optimizer, scale_by
from novoclip.optimizers.moments import debiased
from novoclip.optimizers.step import MASK, Step, add_decay, check_decay
from novoclip.safe_math import ratio
from novoclip.typing import Clip, Granularity, Mask, ScalarOrSchedule, SkipNonfinite


def _stable_adamw(
    b1: ScalarOrSchedule,
    b2: ScalarOrSchedule,
    eps: ScalarOrSchedule,
    max_rms: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule | None,
    weight_decay_mask: Mask,
    per: Granularity,
    mu_dtype: Any,
) -> Algorithm:
    check_number("max_rms", max_rms, exclude_low=True)
    check_decay(weight_decay, weight_decay_mask)
    adam = adam_algorithm(b1, b2, eps, 0.0, mu_dtype)
    blocks = resolve_fixed(per, "rms")

    def direction(gradients: Any, state: AdamState, step: Step) -> Any:
        small = step.value(eps, "eps")
        root = debiased(state.root, jnp.sqrt(state.root_weight))

        def over_root(g: jax.Array, r: jax.Array) -> jax.Array:
            size = jnp.maximum(r, small)
            return ratio(g, jnp.where(size > 0, size, 1).astype(g.dtype))

        sizes, most = blocks.norms(jax.tree.map(over_root, gradients, root)), step.value(max_rms, "max_rms")
        pulled = add_decay(adam.direction(gradients, state, step), step, rate=weight_decay, mask=weight_decay_mask)
        divisors = blocks.spread(jax.tree.map(lambda size: jnp.maximum(1, size / most), sizes), pulled)
        return jax.tree.map(lambda u, by: u / by.astype(u.dtype), pulled, divisors)

    return Algorithm(adam.init, adam.learn, direction, "stable_adamw", masks=((MASK, weight_decay_mask),))


def scale_by_stable_adamw(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.99,
    *,
    eps: ScalarOrSchedule = 1e-6,
    max_rms: ScalarOrSchedule = 1.0,
    weight_decay: ScalarOrSchedule | None = None,
    weight_decay_mask: Mask = None,
    per: Granularity = "tensor",
    mu_dtype: Any = None,
    nonfinite: SkipNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Rescale gradients by StableAdamW: Adam's direction, shortened where gradients exceed their second moment.

    m and v as in Adam, with bias correction. For each tensor
    u = (m / (sqrt(v) + eps) + weight_decay w) / max(1, RMS / max_rms), where RMS^2 is the mean of g^2 / max(v, eps^2).

    It corrects for a v that is out of date, not for outliers: RMS is at most 1 / sqrt(1 - b2), and a spike still
    enters v. Against outliers, put a clipping rule before it, `clip=` in `stable_adamw`.

    Args:
      b1: decay rate of the first moment m, in [0, 1): a float, an array or a schedule.
      b2: decay rate of the second moment v, in [0, 1): a float, an array or a schedule.
      eps: added to sqrt(v), and its least value in RMS, at least 0: a float, an array or a schedule.
      max_rms: limit of RMS, above 0: a float, an array or a schedule.
      weight_decay: strength of the weight decay, which is shortened with the direction, at least 0: a float, an array
        or a schedule; None or 0 for none.
      weight_decay_mask: which parameters decay: a pytree of booleans, or a function of the parameters that returns one;
        None for all.
      per: the blocks that have one second moment or norm: "tensor", "tree" (the whole pytree), "unit", or a Measure,
        such as `novoclip.tensors(stacked=1)`, whose own norm is not used.
      mu_dtype: dtype of m; None for float32 (float64 for float64 parameters).
      nonfinite: "skip" skips a step whose gradients are not finite: updates are 0, and of the state only counters
        change; "propagate" does not check.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are an `AdamState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown. In `update`: if there is
        weight decay and the parameters are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = scale_by_stable_adamw()
      >>> state = rule.init(jnp.zeros(1))
      >>> for gradient in (1.0, 1.0, 1.0, 10.0):
      ...     updates, state = rule.update(jnp.array([gradient]), state)
      ...     print(f"{updates[0]:.2f}")
      1.00
      1.00
      1.00
      0.36

    References:
      Wortsman et al., `Stable and low-precision training for large-scale vision-language models
      <https://arxiv.org/abs/2304.13013>`_, 2023.

    The defaults are those of torch-optimi's StableAdamW, except weight_decay, which is 1e-2 there.
    """
    algorithm = _stable_adamw(b1, b2, eps, max_rms, weight_decay, weight_decay_mask, per, mu_dtype)
    return scale_by(algorithm, nonfinite=nonfinite)


def stable_adamw(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.99,
    *,
    eps: ScalarOrSchedule = 1e-6,
    max_rms: ScalarOrSchedule = 1.0,
    weight_decay: ScalarOrSchedule | None = None,
    weight_decay_mask: Mask = None,
    per: Granularity = "tensor",
    mu_dtype: Any = None,
    clip: Clip = None,
    nonfinite: SkipNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    """The StableAdamW optimizer: AdamW with update clipping, and optional clipping of gradients.

    w <- w - lr u, with the direction u of `scale_by_stable_adamw`.

    Args:
      learning_rate: at least 0: a float, an array or a schedule. Skipped steps do not advance schedules.
      b1: decay rate of the first moment m, in [0, 1): a float, an array or a schedule.
      b2: decay rate of the second moment v, in [0, 1): a float, an array or a schedule.
      eps: added to sqrt(v), and its least value in RMS, at least 0: a float, an array or a schedule.
      max_rms: limit of RMS, above 0: a float, an array or a schedule.
      weight_decay: strength of the weight decay, which is shortened with the direction, at least 0: a float, an array
        or a schedule; None or 0 for none.
      weight_decay_mask: which parameters decay: a pytree of booleans, or a function of the parameters that returns one;
        None for all.
      per: the blocks that have one second moment or norm: "tensor", "tree" (the whole pytree), "unit", or a Measure,
        such as `novoclip.tensors(stacked=1)`, whose own norm is not used.
      mu_dtype: dtype of m; None for float32 (float64 for float64 parameters).
      clip: a clipping rule that is applied to the gradients first, such as `novoclip.clip_by_global_norm(1.0)`.
      nonfinite: "skip" skips a step whose gradients are not finite: updates are 0, and of the state only counters
        change; "propagate" does not check.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are an `AdamState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown. In `update`: if there is
        weight decay and the parameters are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = stable_adamw(1e-3)
      >>> print(optimizer.update(jnp.array([3.0, -4.0]), optimizer.init(jnp.zeros(2)))[0].round(5))
      [-0.001  0.001]

    References:
      Wortsman et al., `Stable and low-precision training for large-scale vision-language models
      <https://arxiv.org/abs/2304.13013>`_, 2023.

    The defaults are those of torch-optimi's StableAdamW, except weight_decay, which is 1e-2 there.
    """
    return optimizer(
        _stable_adamw(b1, b2, eps, max_rms, weight_decay, weight_decay_mask, per, mu_dtype),
        learning_rate,
        clip=clip,
        nonfinite=nonfinite,
    )
