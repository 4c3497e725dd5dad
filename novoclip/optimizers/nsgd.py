"""The NSGD optimizer: normalized gradient descent with momentum."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import check_choice
from novoclip.granularity import resolve_blocks
from novoclip.optimizers.algorithm import Algorithm, optimizer, scale_by
from novoclip.optimizers.momentum import MomentumState, momentum_algorithm
from novoclip.optimizers.step import Step
from novoclip.typing import Clip, DecayMode, Granularity, Mask, ScalarOrSchedule, SkipNonfinite

ORDERS = ("after", "before")


def _nsgd(decay: ScalarOrSchedule, normalize: str, per: Granularity, accumulator_dtype: Any) -> Algorithm:
    check_choice("normalize", normalize, ORDERS)
    measure = resolve_blocks(per)
    after = normalize == "after"
    velocity = momentum_algorithm(decay, "averaged" if after else "heavy_ball", None, False, accumulator_dtype)

    def normalized(tree: Any) -> Any:
        norms = measure.norms(tree)
        # Blocks whose norm overflows become zeros, as in the clipping rules.
        lengths = jax.tree.map(lambda norm: jnp.where(jnp.isfinite(norm) & (norm > 0), 1.0, 0.0), norms)
        return measure.rescale(tree, norms, lengths)

    def learn(gradients: Any, state: MomentumState, step: Step) -> MomentumState:
        return velocity.learn(gradients if after else normalized(gradients), state, step)

    def direction(gradients: Any, state: MomentumState, step: Step) -> Any:
        found = velocity.direction(gradients, state, step)
        return normalized(found) if after else found

    return Algorithm(velocity.init, learn, direction, f"nsgd(normalize={normalize!r})")


def scale_by_nsgd(
    decay: ScalarOrSchedule = 0.9,
    *,
    normalize: Literal["after", "before"] = "after",
    per: Granularity = "tree",
    accumulator_dtype: Any = None,
    nonfinite: SkipNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Rescale gradients by NSGD: normalized after momentum, or before it (SNGM).

        v_t = decay v_{t-1} + (1 - decay) g_t;  u_t = v_t / ||v_t||    normalize="after"
        v_t = decay v_{t-1} + g_t / ||g_t||;    u_t = v_t              normalize="before"

    Choose "after" for noise that momentum averages out, and "before" to bound the effect of one outlier.

    Args:
      decay: decay rate of v, in [0, 1]: a float, an array or a schedule.
      normalize: whether to normalize "after" or "before" momentum.
      per: the blocks that are normalized: "tree", as published, "tensor", "unit" or a Measure.
      accumulator_dtype: dtype of the accumulator v; None for float32 (float64 for float64 parameters).
      nonfinite: "skip" skips a step whose gradients are not finite: updates are 0, and of the state only counters
        change; "propagate" does not check.

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

    The defaults are those of the first paper: decay=0.9 in its code, one norm for all tensors in its algorithm.
    """
    return scale_by(_nsgd(decay, normalize, per, accumulator_dtype), nonfinite=nonfinite)


def nsgd(
    learning_rate: ScalarOrSchedule,
    decay: ScalarOrSchedule = 0.9,
    *,
    normalize: Literal["after", "before"] = "after",
    per: Granularity = "tree",
    accumulator_dtype: Any = None,
    clip: Clip = None,
    weight_decay: ScalarOrSchedule | None = None,
    weight_decay_mask: Mask = None,
    weight_decay_mode: DecayMode = "decoupled",
    nonfinite: SkipNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    """The NSGD optimizer: normalized gradient descent with momentum (also SNGM), with optional clipping.

    w <- w - lr u, with the direction u of `scale_by_nsgd`, plus weight decay. With
    normalize="after" every step of a block has length lr, so the learning rate must decay.

    Args:
      learning_rate: at least 0: a float, an array or a schedule. Skipped steps do not advance schedules.
      decay: decay rate of v, in [0, 1]: a float, an array or a schedule.
      normalize: whether to normalize "after" or "before" momentum. With "before", steps are up to 1 / (1 - decay) times
        longer.
      per: the blocks that are normalized: "tree", as published, "tensor", "unit" or a Measure.
      accumulator_dtype: dtype of the accumulator v; None for float32 (float64 for float64 parameters).
      clip: a clipping rule that is applied to the gradients first, such as `novoclip.clip_by_global_norm(1.0)`.
      weight_decay: strength of the weight decay, at least 0: a float, an array or a schedule; None or 0 for none.
      weight_decay_mask: which parameters decay: a pytree of booleans, or a function of the parameters that returns one;
        None for all.
      weight_decay_mode: "decoupled" adds weight_decay * w to the update, before the learning rate (AdamW); "coupled"
        adds it to the clipped gradients (L2 regularization).
      nonfinite: "skip" skips a step whose gradients are not finite: updates are 0, and of the state only counters
        change; "propagate" does not check.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are a `MomentumState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown. In `update`: if there is
        weight decay and the parameters are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = nsgd(0.1)
      >>> print(optimizer.update(jnp.array([0.0, 400.0]), optimizer.init(jnp.zeros(2)))[0])
      [-0.  -0.1]

    References:
      Cutkosky, Mehta, `Momentum improves normalized SGD <https://arxiv.org/abs/2002.03305>`_, 2020.
      Zhao, Xie, Li, `Stochastic normalized gradient descent with momentum for large batch training
      <https://arxiv.org/abs/2007.13985>`_, 2020.

    The defaults are those of the first paper: decay=0.9 in its code, one norm for all tensors in its algorithm.
    """
    return optimizer(
        _nsgd(decay, normalize, per, accumulator_dtype),
        learning_rate,
        clip=clip,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        weight_decay_mode=weight_decay_mode,
        nonfinite=nonfinite,
    )
