"""Gradients over the root of a running mean of their squares, or over a running standard deviation."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import check_flag, check_initial, check_number
from novoclip.optimizers.algorithm import Algorithm, scale_by
from novoclip.optimizers.kept import check_dtype
from novoclip.optimizers.moments import average, divide, first_roots, ones_average, root_average, scalar, zeros
from novoclip.optimizers.step import Step
from novoclip.typing import Scalar, ScalarOrSchedule, SkipNonfinite


class RMSpropState(NamedTuple):
    """The state of RMSprop, in pytrees like the parameters.

    Attributes:
      root: sqrt(v), or, if centered, the root of the variance v - m^2.
      mean: m if centered, else `()`.
      weight: 1 - decay^t, the weight of the gradients in v and m, with bias correction, else `()`.
    """

    root: Any
    mean: Any
    weight: Any = ()


def rmsprop_algorithm(
    decay: ScalarOrSchedule,
    eps: ScalarOrSchedule,
    initial_scale: Scalar,
    eps_in_sqrt: bool,
    bias_correction: bool,
    nu_dtype: Any,
    *,
    centered: bool,
) -> Algorithm:
    """Return the formula alone."""
    check_number("decay", decay, high=1.0, exclude_high=True)
    check_number("eps", eps)
    check_initial("initial_scale", initial_scale)
    flags = {"eps_in_sqrt": eps_in_sqrt, "centered": centered, "bias_correction": bias_correction}
    for name, flag in flags.items():
        check_flag(name, flag)
    check_dtype("nu_dtype", nu_dtype)

    def init(shapes: Any) -> RMSpropState:
        return RMSpropState(
            first_roots(shapes, nu_dtype, initial_scale),
            zeros(shapes) if centered else (),
            scalar(shapes) if bias_correction else (),
        )

    def learn(gradients: Any, state: RMSpropState, step: Step) -> RMSpropState:
        rate = step.decay(decay, "decay")
        weight: Any = ones_average(state.weight, rate) if bias_correction else ()
        away = gradients
        if centered:
            # The variance by its own recurrence, whose terms are all positive: no difference can go below 0.
            before, kept = jnp.ones((), step.dtype), rate[0]
            if bias_correction:
                before = jnp.where(state.weight > 0, state.weight, 1)
                kept = kept * state.weight / jnp.where(weight > 0, weight, 1)
            away = jax.tree.map(lambda g, m: jnp.sqrt(kept) * (g - m / before), gradients, state.mean)
        state = state._replace(root=root_average(away, state.root, rate), weight=weight)
        return state._replace(mean=average(gradients, state.mean, rate)) if centered else state

    def direction(gradients: Any, state: RMSpropState, step: Step) -> Any:
        small, inside = step.epsilons(eps, inside=eps_in_sqrt)
        if not bias_correction:
            return divide(gradients, state.root, small, inside)
        # g / (root / s + eps) is s g / (root + s eps).
        square = jnp.where(state.weight > 0, state.weight, 1)
        size = jnp.sqrt(square)
        inside = None if inside is None else square * inside
        return divide(gradients, state.root, small._replace(value=size * small.value), inside, size)

    options = f"centered={centered}" + (", bias_correction=True" if bias_correction else "")
    return Algorithm(init, learn, direction, f"rmsprop({options})")


def scale_by_rms(
    decay: ScalarOrSchedule = 0.9,
    eps: ScalarOrSchedule = 1e-8,
    initial_scale: Scalar = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
    *,
    nu_dtype: Any = None,
    nonfinite: SkipNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Rescale gradients by the root of a running mean of their squares (RMSprop).

    v_t = decay v_{t-1} + (1 - decay) g_t^2;  u = g_t / sqrt(v_t + eps), or g_t / (sqrt(v_t) + eps).

    Args:
      decay: decay rate of v, in [0, 1): a float, an array or a schedule.
      eps: added to v, or to its root, at least 0: a float, an array or a schedule.
      initial_scale: v_0, at least 0: a float or an array.
      eps_in_sqrt: whether eps is added inside the root, as in Optax and Keras, or outside, as in torch.
      bias_correction: whether to divide v, and m if centered, by 1 - decay^t.
      nu_dtype: dtype of the root of the second moment; None for float32 (float64 for float64 parameters). 16 bits,
        rounded to nearest, are too few for a decay rate of 0.999: it hardly moves.
      nonfinite: "skip" skips a step whose gradients are not finite: updates are 0, and of the state only counters
        change; "propagate" does not check.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are an `RMSpropState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = scale_by_rms(0.75)
      >>> print(rule.update(jnp.array([3.0, -4.0]), rule.init(jnp.zeros(2)))[0].round(3))
      [ 2. -2.]

    References:
      Hinton, `Lecture 6a of Neural networks for machine learning
      <https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf>`_, 2012.

    Parameters, order and defaults are those of `optax.scale_by_rms`; the differences are those of `adam`.
    """
    algorithm = rmsprop_algorithm(decay, eps, initial_scale, eps_in_sqrt, bias_correction, nu_dtype, centered=False)
    return scale_by(algorithm, nonfinite=nonfinite)


def scale_by_stddev(
    decay: ScalarOrSchedule = 0.9,
    eps: ScalarOrSchedule = 1e-8,
    initial_scale: Scalar = 0.0,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
    *,
    nu_dtype: Any = None,
    nonfinite: SkipNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Rescale gradients by a running standard deviation (centered RMSprop).

    As `scale_by_rms`, with v_t - m_t^2 in place of v_t, where m_t = decay m_{t-1} + (1 - decay) g_t. It is kept by
    a recurrence of its own, and is never negative; under a constant gradient it falls to 0.

    Args:
      decay: decay rate of v, in [0, 1): a float, an array or a schedule.
      eps: added to v, or to its root, at least 0: a float, an array or a schedule.
      initial_scale: v_0, at least 0: a float or an array.
      eps_in_sqrt: whether eps is added inside the root, as in Optax and Keras, or outside, as in torch.
      bias_correction: whether to divide v, and m if centered, by 1 - decay^t.
      nu_dtype: dtype of the root of the second moment; None for float32 (float64 for float64 parameters). 16 bits,
        rounded to nearest, are too few for a decay rate of 0.999: it hardly moves.
      nonfinite: "skip" skips a step whose gradients are not finite: updates are 0, and of the state only counters
        change; "propagate" does not check.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are an `RMSpropState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = scale_by_stddev(0.5)
      >>> print(rule.update(jnp.array([3.0, -4.0]), rule.init(jnp.zeros(2)))[0].round(3))
      [ 2. -2.]

    References:
      Graves, `Generating sequences with recurrent neural networks <https://arxiv.org/abs/1308.0850>`_, 2013.

    Parameters, order and defaults are those of `optax.scale_by_stddev`, which subtracts, and may give NaN. The other
    differences are those of `adam`.
    """
    algorithm = rmsprop_algorithm(decay, eps, initial_scale, eps_in_sqrt, bias_correction, nu_dtype, centered=True)
    return scale_by(algorithm, nonfinite=nonfinite)
