"""StableAdamW: Adam whose steps are shortened where its second moment is out of date."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import Schedulable, check_number
from novoclip.granularity import resolve_fixed
from novoclip.measure import Measure
from novoclip.optimizers.adam import AdamState, adam_algorithm
from novoclip.optimizers.algorithm import Algorithm, optimizer, scale_by
from novoclip.optimizers.moments import debiased
from novoclip.optimizers.step import Step, add_decay, check_decay
from novoclip.safe_math import ratio


def _stable_adamw(
    b1: Schedulable,
    b2: Schedulable,
    eps: Schedulable,
    max_rms: Schedulable,
    weight_decay: Schedulable | None,
    weight_decay_mask: Any,
    per: str | Measure,
    mu_dtype: Any,
) -> Algorithm:
    check_number("max_rms", max_rms, exclude_low=True)
    check_decay(weight_decay, weight_decay_mask)
    adam = adam_algorithm(b1, b2, eps, 0.0, True, mu_dtype, None)
    blocks = resolve_fixed(per, "rms")

    def direction(gradients: Any, state: AdamState, step: Step) -> Any:
        small = step.value(eps, "eps")
        root = debiased(state.root, jnp.sqrt(state.root_weight))

        def surprise(g: jax.Array, r: jax.Array) -> jax.Array:
            size = jnp.maximum(r, small)
            return ratio(g, jnp.where(size > 0, size, 1).astype(g.dtype))

        sizes, most = blocks.norms(jax.tree.map(surprise, gradients, root)), step.value(max_rms, "max_rms")
        pulled = add_decay(adam.direction(gradients, state, step), step, rate=weight_decay, mask=weight_decay_mask)
        divisors = blocks.spread(jax.tree.map(lambda size: jnp.maximum(1, size / most), sizes), pulled)
        return jax.tree.map(lambda u, by: u / by.astype(u.dtype), pulled, divisors)

    return Algorithm(adam.init, adam.learn, direction, "stable_adamw")


def scale_by_stable_adamw(
    b1: Schedulable = 0.9,
    b2: Schedulable = 0.99,
    *,
    eps: Schedulable = 1e-6,
    max_rms: Schedulable = 1.0,
    weight_decay: Schedulable | None = None,
    weight_decay_mask: Any = None,
    per: str | Measure = "tensor",
    mu_dtype: Any = None,
    nonfinite: str = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Shorten Adam's direction by how far the gradient exceeds its second moment (StableAdamW).

    m and v as in Adam, corrected for their biases. For each tensor
    u = (m / (sqrt(v) + eps) + weight_decay w) / max(1, RMS / max_rms), RMS^2 being the mean of g^2 / max(v, eps^2).

    It heals a v that is out of date, not outliers: RMS is at most 1 / sqrt(1 - b2), and a spike still
    enters v. Put a `clip=` in front against those.

    Args:
      b1: decay of m in [0, 1): a float, an array or a schedule.
      b2: decay of v in [0, 1), likewise.
      eps: at least 0, likewise.
      max_rms: above 0, likewise.
      weight_decay: shortened with the direction: at least 0, or None, likewise.
      weight_decay_mask: which parameters decay: a tree of booleans, or a function of the parameters.
      per: the blocks: "tensor", as published, "tree", "unit", or a Measure, such as
        `novoclip.tensors(stacked=1)`, of which only the blocks count.
      mu_dtype: the dtype in which m is kept; float32 by default (float64 for float64 parameters).
      nonfinite: "skip" skips a step with a gradient that is not finite, which no schedule counts; "propagate"
        does not look.

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
    """
    algorithm = _stable_adamw(b1, b2, eps, max_rms, weight_decay, weight_decay_mask, per, mu_dtype)
    return scale_by(algorithm, nonfinite=nonfinite)


def stable_adamw(
    learning_rate: Schedulable,
    b1: Schedulable = 0.9,
    b2: Schedulable = 0.99,
    *,
    eps: Schedulable = 1e-6,
    max_rms: Schedulable = 1.0,
    weight_decay: Schedulable | None = None,
    weight_decay_mask: Any = None,
    per: str | Measure = "tensor",
    mu_dtype: Any = None,
    clip: optax.GradientTransformation | None = None,
    nonfinite: str = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Descend by StableAdamW.

    w <- w - lr u, with the direction u of `scale_by_stable_adamw`.

    Args:
      learning_rate: lr, at least 0: a float, an array or a schedule, which counts the steps that were not skipped.
      b1: decay of m in [0, 1): a float, an array or a schedule.
      b2: decay of v in [0, 1), likewise.
      eps: at least 0, likewise.
      max_rms: of a tensor's gradient over its second moment, above 0, likewise.
      weight_decay: shortened with the direction: at least 0, or None, likewise.
      weight_decay_mask: which parameters decay: a tree of booleans, or a function of the parameters.
      per: the blocks: "tensor", as published, "tree", "unit", or a Measure, such as
        `novoclip.tensors(stacked=1)`, of which only the blocks count.
      mu_dtype: the dtype in which m is kept; float32 by default (float64 for float64 parameters).
      clip: any rule, applied to the gradient first.
      nonfinite: "skip" skips a step with a gradient that is not finite: its updates are 0,
        nothing but two counters moves. "propagate" does not look.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are an `AdamState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown. In `update`: if there is
        weight decay and the parameters are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> descent = stable_adamw(1e-3)
      >>> print(descent.update(jnp.array([3.0, -4.0]), descent.init(jnp.zeros(2)))[0].round(5))
      [-0.001  0.001]

    References:
      Wortsman et al., `Stable and low-precision training for large-scale vision-language models
      <https://arxiv.org/abs/2304.13013>`_, 2023.
    """
    return optimizer(
        _stable_adamw(b1, b2, eps, max_rms, weight_decay, weight_decay_mask, per, mu_dtype),
        learning_rate,
        clip=clip,
        nonfinite=nonfinite,
    )
