"""Adam, with and without bias correction, and with either weight decay."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from novoclip.arguments import Schedulable, check_flag, check_number
from novoclip.optimizers.algorithm import Algorithm, check_dtype, optimizer, scale_by
from novoclip.optimizers.moments import average, divide, ones_average, real_zeros, root_average, scalar, zeros
from novoclip.optimizers.step import Epsilon, Step


class AdamState(NamedTuple):
    """What Adam remembers.

    Attributes:
      mu: m, a tree like the parameters.
      root: sqrt(v), likewise. The root, because v overflows at gradients that can be represented.
      mu_weight: 1 - b1_1 b1_2 ... b1_t, the weight of the gradients in m; `()` without bias correction.
      root_weight: that of v.
    """

    mu: Any
    root: Any
    mu_weight: Any
    root_weight: Any


def adam_algorithm(
    b1: Schedulable,
    b2: Schedulable,
    eps: Schedulable,
    eps_root: Schedulable,
    bias_correction: bool,
    mu_dtype: Any,
    nu_dtype: Any,
) -> Algorithm:
    """Return the formula alone."""
    for name, number in (("b1", b1), ("b2", b2)):
        check_number(name, number, high=1.0, exclude_high=True)
    for name, number in (("eps", eps), ("eps_root", eps_root)):
        check_number(name, number)
    check_flag("bias_correction", bias_correction)
    check_dtype("mu_dtype", mu_dtype)
    check_dtype("nu_dtype", nu_dtype)

    def init(shapes: Any) -> AdamState:
        weights = (scalar(shapes), scalar(shapes)) if bias_correction else ((), ())
        return AdamState(zeros(shapes, mu_dtype), real_zeros(shapes, nu_dtype), *weights)

    def learn(gradients: Any, state: AdamState, step: Step) -> AdamState:
        first, second = step.decay(b1, "b1"), step.decay(b2, "b2")
        return AdamState(
            average(gradients, state.mu, first),
            root_average(gradients, state.root, second),
            ones_average(state.mu_weight, first) if bias_correction else (),
            ones_average(state.root_weight, second) if bias_correction else (),
        )

    def direction(gradients: Any, state: AdamState, step: Step) -> Any:
        del gradients
        return adam_direction(state, state.root, step.epsilon(eps, "eps"), step.unless_zero(eps_root, "eps_root"))

    return Algorithm(init, learn, direction, f"adam(bias_correction={bias_correction})")


def adam_direction(state: AdamState, root: Any, eps: Epsilon, eps_root: Any) -> Any:
    """Return m / (sqrt(root^2 + eps_root) + eps), both divided by their weights if these are kept."""
    if isinstance(state.mu_weight, tuple):
        return divide(state.mu, root, eps, eps_root)
    # (m / w) / (root / s + eps) is (s / w) m / (root + s eps): one scalar, and no quotient more.
    first, second = (jnp.where(weight > 0, weight, 1) for weight in (state.mu_weight, state.root_weight))
    size = jnp.sqrt(second)
    inside = None if eps_root is None else second * eps_root
    return divide(state.mu, root, eps._replace(value=size * eps.value), inside, size / first)


def scale_by_adam(
    b1: Schedulable = 0.9,
    b2: Schedulable = 0.999,
    *,
    eps: Schedulable = 1e-8,
    eps_root: Schedulable = 0.0,
    bias_correction: bool = True,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    nonfinite: str = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Divide the mean of the gradient by the root of the mean of its squares (Adam).

    m_t = b1 m_{t-1} + (1 - b1) g_t;  v_t = b2 v_{t-1} + (1 - b2) g_t^2;  both begin with 0.
    u = m_t' / (sqrt(v_t' + eps_root) + eps), where m_t' = m_t / (1 - b1^t), v_t' = v_t / (1 - b2^t)
    with bias correction; for a schedule, the product of its values stands for b^t.

    Args:
      b1: decay of m in [0, 1): a float, an array or a schedule, such as 0.9 * 0.999**t.
      b2: decay of v in [0, 1), likewise.
      eps: outside of the root, at least 0: a float, an array or a schedule.
      eps_root: inside of it, likewise.
      bias_correction: whether to divide m and v by the weights that they have gathered. Without, the
        first steps are (1 - b1) / sqrt(1 - b2) times as long: 3.2 times with the defaults.
      mu_dtype: the dtype in which m is kept; float32 by default (float64 for float64 parameters).
      nu_dtype: that of sqrt(v), likewise. With 16 bits and b2 = 0.999 it hardly moves.
      nonfinite: "skip" skips a step with a gradient that is not finite, which no schedule counts; "propagate"
        does not look.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are an `AdamState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = scale_by_adam()
      >>> print(rule.update(jnp.array([3.0, -1e-3, 0.0]), rule.init(jnp.zeros(3)))[0].round(4))
      [ 1. -1.  0.]

    References:
      Kingma, Ba, `Adam: a method for stochastic optimization <https://arxiv.org/abs/1412.6980>`_, 2014.
      Loshchilov, Hutter, `Decoupled weight decay regularization <https://arxiv.org/abs/1711.05101>`_, 2017.
    """
    return scale_by(adam_algorithm(b1, b2, eps, eps_root, bias_correction, mu_dtype, nu_dtype), nonfinite=nonfinite)


def adam(
    learning_rate: Schedulable,
    b1: Schedulable = 0.9,
    b2: Schedulable = 0.999,
    *,
    eps: Schedulable = 1e-8,
    eps_root: Schedulable = 0.0,
    bias_correction: bool = True,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    clip: optax.GradientTransformation | None = None,
    weight_decay: Schedulable | None = None,
    weight_decay_mask: Any = None,
    decay: str = "decoupled",
    nonfinite: str = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Descend by Adam; with weight decay, AdamW.

    w <- w - lr u, with the direction u of `scale_by_adam`, plus weight decay.

    Args:
      learning_rate: lr, at least 0: a float, an array or a schedule, which counts the steps that were not skipped.
      b1: decay of m in [0, 1): a float, an array or a schedule, such as 0.9 * 0.999**t.
      b2: decay of v in [0, 1), likewise.
      eps: outside of the root, at least 0: a float, an array or a schedule.
      eps_root: inside of it, likewise.
      bias_correction: whether to divide m and v by the weights that they have gathered. Without, the
        first steps are (1 - b1) / sqrt(1 - b2) times as long: 3.2 times with the defaults.
      mu_dtype: the dtype in which m is kept; float32 by default (float64 for float64 parameters).
      nu_dtype: that of sqrt(v), likewise. With 16 bits and b2 = 0.999 it hardly moves.
      clip: any rule, applied to the gradient first.
      weight_decay: at least 0, or None: a float, an array or a schedule.
      weight_decay_mask: which parameters decay: a tree of booleans, or a function of the parameters.
      decay: "decoupled" adds weight_decay w to the direction, "coupled" to the clipped gradient.
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
      >>> import jax.numpy as jnp, novoclip
      >>> descent = adam(1e-3, weight_decay=0.01, clip=novoclip.clip_by_global_norm(1.0))
      >>> params = jnp.array([1.0, -2.0])
      >>> updates, state = descent.update(jnp.array([3.0, -4.0]), descent.init(params), params)
      >>> print(updates, state.clip.norms)
      [-0.00101  0.00102] 5.0

    References:
      Kingma, Ba, `Adam: a method for stochastic optimization <https://arxiv.org/abs/1412.6980>`_, 2014.
      Loshchilov, Hutter, `Decoupled weight decay regularization <https://arxiv.org/abs/1711.05101>`_, 2017.

    torch's `Adam(weight_decay=...)` is decay="coupled", its `AdamW` the default here.
    """
    return optimizer(
        adam_algorithm(b1, b2, eps, eps_root, bias_correction, mu_dtype, nu_dtype),
        learning_rate,
        clip=clip,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        decay=decay,
        nonfinite=nonfinite,
    )
