"""Gradient descent with a velocity."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import Schedulable, check_choice, check_flag, check_number
from novoclip.optimizers.algorithm import Algorithm, check_dtype, optimizer, scale_by
from novoclip.optimizers.moments import average, zeros
from novoclip.optimizers.step import Step

FORMS = ("heavy_ball", "averaged")


class MomentumState(NamedTuple):
    """What momentum remembers.

    Attributes:
      velocity: a tree like the parameters.
    """

    velocity: Any


def momentum_algorithm(
    gamma: Schedulable, form: str, dampening: Schedulable | None, nesterov: bool, mu_dtype: Any
) -> Algorithm:
    """Return the formula alone."""
    check_number("gamma", gamma, high=1.0)
    check_choice("form", form, FORMS)
    check_flag("nesterov", nesterov)
    check_dtype("mu_dtype", mu_dtype)
    if dampening is not None:
        check_number("dampening", dampening, high=1.0)
        if form == "averaged" or nesterov:
            msg = f"dampening must be None in the averaged form and with nesterov; got {dampening!r}"
            raise ValueError(msg)

    def learn(gradients: Any, state: MomentumState, step: Step) -> MomentumState:
        b, rest = step.decay(gamma, "gamma")
        if form == "averaged":
            return MomentumState(average(gradients, state.velocity, (b, rest)))
        taken = jnp.ones((), step.dtype)
        if dampening is not None:
            taken = jnp.where(step.number == 0, 1, step.decay(dampening, "dampening")[1])
        return MomentumState(jax.tree.map(lambda g, v: b * v + taken * g, gradients, state.velocity))

    def direction(gradients: Any, state: MomentumState, step: Step) -> Any:
        if not nesterov:
            return state.velocity
        b, rest = step.decay(gamma, "gamma")
        taken = rest if form == "averaged" else jnp.ones((), step.dtype)
        return jax.tree.map(lambda g, v: taken * g + b * v, gradients, state.velocity)

    def init(shapes: Any) -> MomentumState:
        return MomentumState(zeros(shapes, mu_dtype))

    return Algorithm(init, learn, direction, f"momentum(form={form!r})")


def scale_by_momentum(
    gamma: Schedulable = 0.9,
    *,
    form: str = "heavy_ball",
    dampening: Schedulable | None = None,
    nesterov: bool = False,
    mu_dtype: Any = None,
    nonfinite: str = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Replace the gradient by a velocity.

    v_0 = 0, and

        v_t = gamma v_{t-1} + (1 - dampening) g_t;  u = v_t, or g_t + gamma v_t with nesterov      "heavy_ball"
        v_t = gamma v_{t-1} + (1 - gamma) g_t;      u = v_t, or (1 - gamma) g_t + gamma v_t        "averaged"

    where the first step is not dampened, as in torch.

    Args:
      gamma: decay of v in [0, 1]: a float, an array or a schedule.
      form: "heavy_ball" or "averaged". The heavy ball's steps are 1 / (1 - gamma) times longer.
      dampening: in [0, 1], or None: a float, an array or a schedule; None with nesterov and if averaged.
      nesterov: whether to look ahead.
      mu_dtype: the dtype in which v is kept; float32 by default (float64 for float64 parameters).
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
      >>> ball = scale_by_momentum(0.5)
      >>> state = ball.init(jnp.zeros(1))
      >>> for _ in range(3):
      ...     updates, state = ball.update(jnp.ones(1), state)
      ...     print(updates)
      [1.]
      [1.5]
      [1.75]

    References:
      Polyak, `Some methods of speeding up the convergence of iteration methods
      <https://doi.org/10.1016/0041-5553(64)90137-5>`_, 1964. Sutskever et al., `On the importance
      of initialization and momentum in deep learning
      <https://proceedings.mlr.press/v28/sutskever13.html>`_, 2013.
    """
    return scale_by(momentum_algorithm(gamma, form, dampening, nesterov, mu_dtype), nonfinite=nonfinite)


def momentum(
    learning_rate: Schedulable,
    gamma: Schedulable = 0.9,
    *,
    form: str = "heavy_ball",
    dampening: Schedulable | None = None,
    nesterov: bool = False,
    mu_dtype: Any = None,
    clip: optax.GradientTransformation | None = None,
    weight_decay: Schedulable | None = None,
    weight_decay_mask: Any = None,
    decay: str = "decoupled",
    nonfinite: str = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Descend with a velocity (heavy ball, Nesterov).

    w <- w - lr u, with the direction u of `scale_by_momentum`, plus weight decay.

    Args:
      learning_rate: lr, at least 0: a float, an array or a schedule, which counts the steps that were not skipped.
      gamma: decay of v in [0, 1]: a float, an array or a schedule.
      form: "heavy_ball" or "averaged". The heavy ball's steps are 1 / (1 - gamma) times longer.
      dampening: in [0, 1], or None: a float, an array or a schedule; None with nesterov and if averaged.
      nesterov: whether to look ahead.
      mu_dtype: the dtype in which v is kept; float32 by default (float64 for float64 parameters).
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
      >>> descent = momentum(0.1)
      >>> print(descent.update(jnp.ones(1), descent.init(jnp.ones(1)))[0])
      [-0.1]

    References:
      Polyak, `Some methods of speeding up the convergence of iteration methods
      <https://doi.org/10.1016/0041-5553(64)90137-5>`_, 1964. Sutskever et al., `On the importance
      of initialization and momentum in deep learning
      <https://proceedings.mlr.press/v28/sutskever13.html>`_, 2013.
    """
    return optimizer(
        momentum_algorithm(gamma, form, dampening, nesterov, mu_dtype),
        learning_rate,
        clip=clip,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        decay=decay,
        nonfinite=nonfinite,
    )
