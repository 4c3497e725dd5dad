"""The Adagrad optimizer, per element, and AdaGrad-Norm, per tensor or for the whole pytree."""

from __future__ import annotations

from typing import Any, NamedTuple

import optax

from novoclip.arguments import check_flag, check_initial, check_number
from novoclip.granularity import resolve_fixed
from novoclip.measure import norm_shapes
from novoclip.optimizers.algorithm import Algorithm, optimizer, scale_by
from novoclip.optimizers.kept import check_dtype
from novoclip.optimizers.moments import block_sizes, divide, first_roots, root_sum
from novoclip.optimizers.step import Step
from novoclip.typing import Clip, DecayMode, Granularity, Mask, Scalar, ScalarOrSchedule, SkipNonfinite


class AdagradState(NamedTuple):
    """The state of Adagrad.

    Attributes:
      root: sqrt(G): a pytree like the parameters, a vector over the tensors, or a scalar. The
        root, because a sum of squares overflows at norms that can be represented.
    """

    root: Any


def _adagrad(
    initial_accumulator_value: Scalar, eps: ScalarOrSchedule, eps_in_sqrt: bool, per: Granularity, nu_dtype: Any
) -> Algorithm:
    check_initial("initial_accumulator_value", initial_accumulator_value)
    check_number("eps", eps)
    check_flag("eps_in_sqrt", eps_in_sqrt)
    check_dtype("nu_dtype", nu_dtype)
    blocks = resolve_fixed(per, elements=True)

    def init(shapes: Any) -> AdagradState:
        roots = norm_shapes(blocks, shapes)
        return AdagradState(first_roots(roots, nu_dtype, initial_accumulator_value))

    def learn(gradients: Any, state: AdagradState, step: Step) -> AdagradState:
        del step
        return AdagradState(root_sum(block_sizes(blocks, gradients), state.root))

    def direction(gradients: Any, state: AdagradState, step: Step) -> Any:
        roots = blocks.spread(state.root, gradients)
        return divide(gradients, roots, *step.epsilons(eps, inside=eps_in_sqrt))

    return Algorithm(init, learn, direction, f"adagrad per {blocks.name}")


def scale_by_rss(
    initial_accumulator_value: Scalar = 0.1,
    eps: ScalarOrSchedule = 1e-7,
    *,
    eps_in_sqrt: bool = True,
    per: Granularity = "element",
    nu_dtype: Any = None,
    nonfinite: SkipNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Rescale gradients by the root of the sum of all their squares so far (Adagrad).

    G_t = G_{t-1} + g_t^2;  u = g_t / sqrt(G_t + eps), or g_t / (sqrt(G_t) + eps), and 0 where that is 0 / 0.
    For AdaGrad-Norm, per "tensor" or "tree", g_t^2 is the squared norm of the block.

    Args:
      initial_accumulator_value: G_0, at least 0: a float or an array.
      eps: added to G, or to its root, at least 0: a float, an array or a schedule.
      eps_in_sqrt: whether eps is added inside the root, as in Optax and Keras, or outside, as in torch.
      per: the blocks that have one G: "element" (Adagrad), or for AdaGrad-Norm "tensor", "tree" (the whole pytree),
        "unit", or a Measure, such as `novoclip.tensors(stacked=1)`, whose own norm is not used.
      nu_dtype: dtype of the root of the second moment; None for float32 (float64 for float64 parameters). 16 bits,
        rounded to nearest, are too few for a decay rate of 0.999: it hardly moves.
      nonfinite: "skip" skips a step whose gradients are not finite: updates are 0, and of the state only counters
        change; "propagate" does not check.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are an `AdagradState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = scale_by_rss(0.0, eps=0.0)
      >>> print(rule.update(jnp.array([3.0, -4.0, 0.0]), rule.init(jnp.zeros(3)))[0])
      [ 1. -1.  0.]
      >>> rule = scale_by_rss(0.0, eps=0.0, per="tree")
      >>> print(rule.update(jnp.array([3.0, -4.0, 0.0]), rule.init(jnp.zeros(3)))[0])
      [ 0.6 -0.8  0. ]

    References:
      Duchi, Hazan, Singer, `Adaptive subgradient methods for online learning and stochastic
      optimization <https://jmlr.org/papers/v12/duchi11a.html>`_, 2011. Ward, Wu, Bottou, `AdaGrad
      stepsizes: sharp convergence over nonconvex landscapes <https://arxiv.org/abs/1806.01811>`_, 2018.

    Parameters, order and defaults are those of `optax.scale_by_rss`; the differences are those of `adam`.
    """
    return scale_by(_adagrad(initial_accumulator_value, eps, eps_in_sqrt, per, nu_dtype), nonfinite=nonfinite)


def adagrad(
    learning_rate: ScalarOrSchedule,
    initial_accumulator_value: Scalar = 0.1,
    eps: ScalarOrSchedule = 1e-7,
    *,
    eps_in_sqrt: bool = True,
    per: Granularity = "element",
    nu_dtype: Any = None,
    clip: Clip = None,
    weight_decay: ScalarOrSchedule | None = None,
    weight_decay_mask: Mask = None,
    weight_decay_mode: DecayMode = "decoupled",
    nonfinite: SkipNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    """The Adagrad optimizer, or AdaGrad-Norm, with optional clipping and weight decay.

    w <- w - lr u, with the direction u of `scale_by_rss`, plus weight decay.

    Args:
      learning_rate: at least 0: a float, an array or a schedule. Skipped steps do not advance schedules.
      initial_accumulator_value: G_0, at least 0: a float or an array.
      eps: added to G, or to its root, at least 0: a float, an array or a schedule.
      eps_in_sqrt: whether eps is added inside the root, as in Optax and Keras, or outside, as in torch.
      per: the blocks that have one G: "element" (Adagrad), or for AdaGrad-Norm "tensor", "tree" (the whole pytree),
        "unit", or a Measure, such as `novoclip.tensors(stacked=1)`, whose own norm is not used.
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
      A GradientTransformation with an `OptimizerState` whose `moments` are an `AdagradState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown. In `update`: if there is
        weight decay and the parameters are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = adagrad(0.1, 0.0)
      >>> print(optimizer.update(jnp.array([3.0, -4.0]), optimizer.init(jnp.zeros(2)))[0])
      [-0.1  0.1]

    References:
      Duchi, Hazan, Singer, `Adaptive subgradient methods for online learning and stochastic
      optimization <https://jmlr.org/papers/v12/duchi11a.html>`_, 2011. Ward, Wu, Bottou, `AdaGrad
      stepsizes: sharp convergence over nonconvex landscapes <https://arxiv.org/abs/1806.01811>`_, 2018.

    Parameters, order and defaults are those of `optax.adagrad`; the differences are those of `adam`. torch's
    `Adagrad` is `adagrad(lr, 0.0, 1e-10, eps_in_sqrt=False)`.
    """
    return optimizer(
        _adagrad(initial_accumulator_value, eps, eps_in_sqrt, per, nu_dtype),
        learning_rate,
        clip=clip,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        weight_decay_mode=weight_decay_mode,
        nonfinite=nonfinite,
    )
