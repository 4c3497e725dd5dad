"""Normalized gradient descent with momentum."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import Schedulable, check_choice
from novoclip.granularity import resolve_blocks
from novoclip.measure import Measure
from novoclip.optimizers.algorithm import Algorithm, optimizer, scale_by
from novoclip.optimizers.momentum import MomentumState, momentum_algorithm
from novoclip.optimizers.step import Step

ORDERS = ("after", "before")


def _nsgd(gamma: Schedulable, normalize: str, per: str | Measure, mu_dtype: Any) -> Algorithm:
    check_choice("normalize", normalize, ORDERS)
    measure = resolve_blocks(per)
    after = normalize == "after"
    velocity = momentum_algorithm(gamma, "averaged" if after else "heavy_ball", None, False, mu_dtype)

    def of_length_one(tree: Any) -> Any:
        norms = measure.norms(tree)
        # Blocks whose norm is beyond the range of numbers become zeros, as in the rules.
        lengths = jax.tree.map(lambda norm: jnp.where(jnp.isfinite(norm) & (norm > 0), 1.0, 0.0), norms)
        return measure.rescale(tree, norms, lengths)

    def learn(gradients: Any, state: MomentumState, step: Step) -> MomentumState:
        return velocity.learn(gradients if after else of_length_one(gradients), state, step)

    def direction(gradients: Any, state: MomentumState, step: Step) -> Any:
        found = velocity.direction(gradients, state, step)
        return of_length_one(found) if after else found

    return Algorithm(velocity.init, learn, direction, f"nsgd(normalize={normalize!r})")


def scale_by_nsgd(
    gamma: Schedulable = 0.9,
    *,
    normalize: str = "after",
    per: str | Measure = "tree",
    mu_dtype: Any = None,
    nonfinite: str = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Replace the gradient by a normalized velocity (NSGD with momentum, SNGM).

        m_t = gamma m_{t-1} + (1 - gamma) g_t;  u_t = m_t / ||m_t||    normalize="after"
        m_t = gamma m_{t-1} + g_t / ||g_t||;    u_t = m_t              normalize="before"

    "after" is for noise that momentum averages out; "before" bounds what one outlier does.

    Args:
      gamma: decay of m in [0, 1]: a float, an array or a schedule.
      normalize: "after" or "before" momentum.
      per: the blocks that are normalized: "tree", as published, "tensor", "unit" or a Measure.
      mu_dtype: the dtype in which m is kept; float32 by default (float64 for float64 parameters).
      nonfinite: "skip" skips a step with a gradient that is not finite, which no schedule counts; "propagate"
        does not look.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are a `MomentumState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = scale_by_nsgd()
      >>> print(rule.update(jnp.array([0.0, 400.0]), rule.init(jnp.zeros(2)))[0])
      [0. 1.]

    References:
      Cutkosky, Mehta, `Momentum improves normalized SGD <https://arxiv.org/abs/2002.03305>`_, 2020.
      Zhao, Xie, Li, `Stochastic normalized gradient descent with momentum for large batch training
      <https://arxiv.org/abs/2007.13985>`_, 2020.
    """
    return scale_by(_nsgd(gamma, normalize, per, mu_dtype), nonfinite=nonfinite)


def nsgd(
    learning_rate: Schedulable,
    gamma: Schedulable = 0.9,
    *,
    normalize: str = "after",
    per: str | Measure = "tree",
    mu_dtype: Any = None,
    clip: optax.GradientTransformation | None = None,
    weight_decay: Schedulable | None = None,
    weight_decay_mask: Any = None,
    decay: str = "decoupled",
    nonfinite: str = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Descend by normalized momentum (NSGD with momentum, SNGM).

    w <- w - lr u, with the direction u of `scale_by_nsgd`, plus weight decay. Every step is lr long:
    the learning rate has to fall.

    Args:
      learning_rate: lr, at least 0: a float, an array or a schedule, which counts the steps that were not skipped.
      gamma: decay of m in [0, 1]: a float, an array or a schedule.
      normalize: "after" or "before" momentum. Before, steps are up to 1 / (1 - gamma) times longer.
      per: the blocks that are normalized: "tree", as published, "tensor", "unit" or a Measure.
      mu_dtype: the dtype in which m is kept; float32 by default (float64 for float64 parameters).
      clip: any rule, applied to the gradient first.
      weight_decay: at least 0, or None: a float, an array or a schedule.
      weight_decay_mask: which parameters decay: a tree of booleans, or a function of the parameters.
      decay: "decoupled" adds weight_decay w to the direction, "coupled" to the clipped gradient.
      nonfinite: "skip" skips a step with a gradient that is not finite: its updates are 0,
        nothing but two counters moves. "propagate" does not look.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are a `MomentumState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown. In `update`: if there is
        weight decay and the parameters are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> descent = nsgd(0.1)
      >>> print(descent.update(jnp.array([0.0, 400.0]), descent.init(jnp.zeros(2)))[0])
      [-0.  -0.1]

    References:
      Cutkosky, Mehta, `Momentum improves normalized SGD <https://arxiv.org/abs/2002.03305>`_, 2020.
      Zhao, Xie, Li, `Stochastic normalized gradient descent with momentum for large batch training
      <https://arxiv.org/abs/2007.13985>`_, 2020.
    """
    return optimizer(
        _nsgd(gamma, normalize, per, mu_dtype),
        learning_rate,
        clip=clip,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        decay=decay,
        nonfinite=nonfinite,
    )
