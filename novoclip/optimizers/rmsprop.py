"""RMSprop, also centered, also with momentum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import Schedulable, check_flag, check_number
from novoclip.optimizers.algorithm import Algorithm, check_dtype, optimizer, scale_by
from novoclip.optimizers.moments import average, divide, real_zeros, root_average, zeros
from novoclip.optimizers.step import Step


class RMSpropState(NamedTuple):
    """What RMSprop remembers, in trees like the parameters.

    Attributes:
      root: sqrt(R), or, if centered, the root of the variance R - m^2.
      mean: m if centered, else `()`.
      velocity: the velocity if there is momentum, else `()`.
    """

    root: Any
    mean: Any
    velocity: Any


def _rmsprop(
    rho: Schedulable,
    eps: Schedulable,
    eps_root: Schedulable,
    centered: bool,
    momentum: Schedulable | None,
    nu_dtype: Any,
) -> Algorithm:
    check_number("rho", rho, high=1.0, exclude_high=True)
    if momentum is not None:
        check_number("momentum", momentum, high=1.0)
    for name, number in (("eps", eps), ("eps_root", eps_root)):
        check_number(name, number)
    check_flag("centered", centered)
    check_dtype("nu_dtype", nu_dtype)

    def init(shapes: Any) -> RMSpropState:
        return RMSpropState(
            real_zeros(shapes, nu_dtype), zeros(shapes) if centered else (), () if momentum is None else zeros(shapes)
        )

    def scaled(gradients: Any, root: Any, step: Step) -> Any:
        return divide(gradients, root, step.epsilon(eps, "eps"), step.unless_zero(eps_root, "eps_root"))

    def learn(gradients: Any, state: RMSpropState, step: Step) -> RMSpropState:
        decay = step.decay(rho, "rho")
        mean, velocity = state.mean, state.velocity
        if centered:
            # The variance by its own recurrence, whose terms are all positive: no difference can go below 0.
            away = jax.tree.map(lambda g, m: jnp.sqrt(decay[0]) * (g - m), gradients, mean)
            root = root_average(away, state.root, decay)
            mean = average(gradients, mean, decay)
        else:
            root = root_average(gradients, state.root, decay)
        if momentum is not None:
            by = step.value(momentum, "momentum")
            velocity = jax.tree.map(lambda u, v: by * v + u, scaled(gradients, root, step), velocity)
        return RMSpropState(root, mean, velocity)

    def direction(gradients: Any, state: RMSpropState, step: Step) -> Any:
        return scaled(gradients, state.root, step) if momentum is None else state.velocity

    options = f"centered={centered}, momentum={'None' if momentum is None else 'given'}"
    return Algorithm(init, learn, direction, f"rmsprop({options})")


def scale_by_rmsprop(
    rho: Schedulable = 0.9,
    *,
    eps: Schedulable = 1e-8,
    eps_root: Schedulable = 0.0,
    centered: bool = False,
    momentum: Schedulable | None = None,
    nu_dtype: Any = None,
    nonfinite: str = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Divide the gradient by the root of a running mean of its squares (RMSprop).

    R_t = rho R_{t-1} + (1 - rho) g_t^2, R_0 = 0;  u = g_t / (sqrt(R_t + eps_root) + eps).
    Centered, R_t - m_t^2 stands for R_t, m_t = rho m_{t-1} + (1 - rho) g_t; it is kept by a
    recurrence of its own, and is never negative. With momentum, u is b_t = momentum b_{t-1} + u.

    Args:
      rho: decay of R in [0, 1): a float, an array or a schedule; torch has 0.99.
      eps: outside of the root, at least 0: a float, an array or a schedule.
      eps_root: inside of it, likewise. Optax has eps=0, eps_root=1e-8, Keras 1e-7.
      centered: whether to divide by the deviation. Under a constant gradient it falls to 0, and
        the direction grows to g / eps.
      momentum: of the directions, in [0, 1]: a float, an array or a schedule; None for none.
      nu_dtype: the dtype in which sqrt(R) is kept; float32 by default (float64 for float64 parameters).
      nonfinite: "skip" skips a step with a gradient that is not finite, which no schedule counts; "propagate"
        does not look.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are an `RMSpropState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = scale_by_rmsprop(0.75)
      >>> print(rule.update(jnp.array([3.0, -4.0, 0.0]), rule.init(jnp.zeros(3)))[0])
      [ 2. -2.  0.]

    References:
      Hinton, `Neural networks for machine learning, lecture 6
      <https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf>`_, 2012.
      Graves, `Generating sequences with recurrent neural networks
      <https://arxiv.org/abs/1308.0850>`_, 2013, for the centered form.
    """
    return scale_by(_rmsprop(rho, eps, eps_root, centered, momentum, nu_dtype), nonfinite=nonfinite)


def rmsprop(
    learning_rate: Schedulable,
    rho: Schedulable = 0.9,
    *,
    eps: Schedulable = 1e-8,
    eps_root: Schedulable = 0.0,
    centered: bool = False,
    momentum: Schedulable | None = None,
    nu_dtype: Any = None,
    clip: optax.GradientTransformation | None = None,
    weight_decay: Schedulable | None = None,
    weight_decay_mask: Any = None,
    decay: str = "decoupled",
    nonfinite: str = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Descend by RMSprop.

    w <- w - lr u, with the direction u of `scale_by_rmsprop`, plus weight decay.

    Args:
      learning_rate: lr, at least 0: a float, an array or a schedule, which counts the steps that were not skipped.
      rho: decay of R in [0, 1): a float, an array or a schedule; torch has 0.99.
      eps: outside of the root, at least 0: a float, an array or a schedule.
      eps_root: inside of it, likewise. Optax has eps=0, eps_root=1e-8, Keras 1e-7.
      centered: whether to divide by the deviation. Under a constant gradient it falls to 0, and
        the direction grows to g / eps.
      momentum: of the directions, in [0, 1]: a float, an array or a schedule; None for none.
      nu_dtype: the dtype in which sqrt(R) is kept; float32 by default (float64 for float64 parameters).
      clip: any rule, applied to the gradient first.
      weight_decay: at least 0, or None: a float, an array or a schedule.
      weight_decay_mask: which parameters decay: a tree of booleans, or a function of the parameters.
      decay: "decoupled" adds weight_decay w to the direction, "coupled" to the clipped gradient.
      nonfinite: "skip" skips a step with a gradient that is not finite: its updates are 0,
        nothing but two counters moves. "propagate" does not look.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are an `RMSpropState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown. In `update`: if there is
        weight decay and the parameters are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> descent = rmsprop(0.1, 0.75)
      >>> print(descent.update(jnp.array([3.0, -4.0]), descent.init(jnp.zeros(2)))[0])
      [-0.2  0.2]

    References:
      Hinton, `Neural networks for machine learning, lecture 6
      <https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf>`_, 2012.
      Graves, `Generating sequences with recurrent neural networks
      <https://arxiv.org/abs/1308.0850>`_, 2013, for the centered form.
    """
    return optimizer(
        _rmsprop(rho, eps, eps_root, centered, momentum, nu_dtype),
        learning_rate,
        clip=clip,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        decay=decay,
        nonfinite=nonfinite,
    )
