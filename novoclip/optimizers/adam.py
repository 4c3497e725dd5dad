"""The Adam optimizer: AdamW, with and without bias correction, with Nesterov momentum."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import check_flag, check_number
from novoclip.optimizers.algorithm import Algorithm, optimizer, scale_by
from novoclip.optimizers.kept import check_dtype
from novoclip.optimizers.moments import average, divide, ones_average, real_zeros, root_average, scalar, zeros
from novoclip.optimizers.step import Epsilon, Step
from novoclip.typing import Clip, DecayMode, Mask, ScalarOrSchedule, SkipNonfinite


class AdamState(NamedTuple):
    """The state of Adam.

    Attributes:
      mu: m, a pytree like the parameters.
      root: sqrt(v), likewise. The root, because v overflows at gradients that can be represented.
      mu_weight: 1 - b1_1 b1_2 ... b1_t, the weight of the gradients in m; `()` without bias correction.
      root_weight: that of v.
    """

    mu: Any
    root: Any
    mu_weight: Any
    root_weight: Any


def adam_algorithm(
    b1: ScalarOrSchedule,
    b2: ScalarOrSchedule,
    eps: ScalarOrSchedule,
    eps_root: ScalarOrSchedule,
    mu_dtype: Any,
    *,
    nu_dtype: Any = None,
    nesterov: bool = False,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
) -> Algorithm:
    """Return the formula alone."""
    for name, number in (("b1", b1), ("b2", b2)):
        check_number(name, number, high=1.0, exclude_high=True)
    for name, number in (("eps", eps), ("eps_root", eps_root)):
        check_number(name, number)
    check_flag("nesterov", nesterov)
    check_dtype("mu_dtype", mu_dtype, random=True)
    check_dtype("nu_dtype", nu_dtype, random=True)

    def init(shapes: Any) -> AdamState:
        of_mu, of_nu = (scalar(shapes) if each else () for each in (bias_correction_mu, bias_correction_nu))
        return AdamState(zeros(shapes, mu_dtype), real_zeros(shapes, nu_dtype), of_mu, of_nu)

    def learn(gradients: Any, state: AdamState, step: Step) -> AdamState:
        first, second = step.decay(b1, "b1"), step.decay(b2, "b2")
        return AdamState(
            average(gradients, state.mu, first),
            root_average(gradients, state.root, second),
            ones_average(state.mu_weight, first) if bias_correction_mu else (),
            ones_average(state.root_weight, second) if bias_correction_nu else (),
        )

    def direction(gradients: Any, state: AdamState, step: Step) -> Any:
        if nesterov:
            state = _looking_ahead(gradients, state, step.decay(b1, "b1"))
        return adam_direction(state, state.root, step.epsilon(eps, "eps"), step.unless_zero(eps_root, "eps_root"))

    corrected = f"bias_correction={bias_correction_mu}"
    if bias_correction_mu != bias_correction_nu:
        corrected = f"bias_correction_mu={bias_correction_mu}, bias_correction_nu={bias_correction_nu}"
    return Algorithm(init, learn, direction, f"adam({corrected})")


def _looking_ahead(gradients: Any, state: AdamState, decay: tuple[jax.Array, jax.Array]) -> AdamState:
    """Return the state with b1 m / (1 - b1^(t + 1)) + (1 - b1) g / (1 - b1^t) in place of m, weighing 1."""
    kept, taken = decay
    if not isinstance(state.mu_weight, tuple):
        weight = jnp.where(state.mu_weight > 0, state.mu_weight, 1)
        kept, taken = kept / ones_average(weight, decay), taken / weight
        state = state._replace(mu_weight=jnp.ones_like(weight))
    return state._replace(mu=jax.tree.map(lambda m, g: kept * m + taken * g, state.mu, gradients))


def adam_direction(state: AdamState, root: Any, eps: Epsilon, eps_root: Any) -> Any:
    """Return m / (sqrt(root^2 + eps_root) + eps), each divided by its weight if that is kept."""
    # (m / w) / (root / s + eps) is (s / w) m / (root + s eps): one scalar, and no quotient more.
    by = None
    if not isinstance(state.root_weight, tuple):
        second = jnp.where(state.root_weight > 0, state.root_weight, 1)
        by = jnp.sqrt(second)
        eps_root = None if eps_root is None else second * eps_root
        eps = eps._replace(value=by * eps.value)
    if not isinstance(state.mu_weight, tuple):
        first = jnp.where(state.mu_weight > 0, state.mu_weight, 1)
        by = 1 / first if by is None else by / first
    return divide(state.mu, root, eps, eps_root, by)


def scale_by_adam(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
    bias_correction: bool = True,
    nu_dtype: Any = None,
    nonfinite: SkipNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Rescale gradients by Adam: their running mean, divided by the root of the running mean of their squares.

    m_t = b1 m_{t-1} + (1 - b1) g_t;  v_t = b2 v_{t-1} + (1 - b2) g_t^2;  both begin with 0.
    u = m_t' / (sqrt(v_t' + eps_root) + eps), where m_t' = m_t / (1 - b1^t), v_t' = v_t / (1 - b2^t)
    with bias correction; for a schedule, the product of its values stands for b^t.

    Args:
      b1: decay rate of the first moment m, in [0, 1): a float, an array or a schedule.
      b2: decay rate of the second moment v, in [0, 1): a float, an array or a schedule.
      eps: added to the root of the second moment, at least 0: a float, an array or a schedule.
      eps_root: added to the second moment inside the root, at least 0: a float, an array or a schedule.
      mu_dtype: dtype of m; None for float32 (float64 for float64 parameters).
      nesterov: whether to use Nesterov momentum, which looks one step ahead.
      bias_correction: whether to divide m and v by the weights of the gradients in them. Without, the first steps are
        (1 - b1) / sqrt(1 - b2) times as long: 3.2 times with the defaults.
      nu_dtype: dtype of the root of the second moment; None for float32 (float64 for float64 parameters). 16 bits,
        rounded to nearest, are too few for a decay rate of 0.999: it hardly moves.
      nonfinite: "skip" skips a step whose gradients are not finite: updates are 0, and of the state only counters
        change; "propagate" does not check.

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
      Dozat, `Incorporating Nesterov momentum into Adam <https://openreview.net/pdf?id=OM0jvwB8jIp57ZJjtNEZ>`_, 2016.
    """
    check_flag("bias_correction", bias_correction)
    corrections = {"bias_correction_mu": bias_correction, "bias_correction_nu": bias_correction}
    algorithm = adam_algorithm(b1, b2, eps, eps_root, mu_dtype, nu_dtype=nu_dtype, nesterov=nesterov, **corrections)
    return scale_by(algorithm, nonfinite=nonfinite)


def adam(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
    bias_correction: bool = True,
    nu_dtype: Any = None,
    clip: Clip = None,
    weight_decay: ScalarOrSchedule | None = None,
    weight_decay_mask: Mask = None,
    weight_decay_mode: DecayMode = "decoupled",
    nonfinite: SkipNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    """The Adam optimizer, with optional clipping and weight decay.

    w <- w - lr u, with the direction u of `scale_by_adam`, plus weight decay.

    Args:
      learning_rate: at least 0: a float, an array or a schedule. Skipped steps do not advance schedules.
      b1: decay rate of the first moment m, in [0, 1): a float, an array or a schedule.
      b2: decay rate of the second moment v, in [0, 1): a float, an array or a schedule.
      eps: added to the root of the second moment, at least 0: a float, an array or a schedule.
      eps_root: added to the second moment inside the root, at least 0: a float, an array or a schedule.
      mu_dtype: dtype of m; None for float32 (float64 for float64 parameters).
      nesterov: whether to use Nesterov momentum, which looks one step ahead.
      bias_correction: whether to divide m and v by the weights of the gradients in them. Without, the first steps are
        (1 - b1) / sqrt(1 - b2) times as long: 3.2 times with the defaults.
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
      A GradientTransformation with an `OptimizerState` whose `moments` are an `AdamState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown. In `update`: if there is
        weight decay and the parameters are absent.

    Example:
      >>> import jax.numpy as jnp, novoclip
      >>> optimizer = adam(1e-3, weight_decay=0.01, clip=novoclip.clip_by_global_norm(1.0))
      >>> params = jnp.array([1.0, -2.0])
      >>> updates, state = optimizer.update(jnp.array([3.0, -4.0]), optimizer.init(params), params)
      >>> print(updates, state.clip.norms)
      [-0.00101  0.00102] 5.0

    References:
      Kingma, Ba, `Adam: a method for stochastic optimization <https://arxiv.org/abs/1412.6980>`_, 2014.

    Parameters, order and defaults are those of `optax.adam`, up to `nesterov`. Differences: a step that is not finite
    is skipped, moments are kept in float32 whatever the parameters are, and sqrt(v) is kept in place of v, so that
    gradients above 1e19 do not overflow. torch's `Adam(weight_decay=...)` is weight_decay_mode="coupled".

    mu_dtype and nu_dtype also take two forms that are rounded at random, by a key of the step, so that a slow mean
    follows. "int8": codes that are finer near 0, one float32 scale per 256 elements, 2.03 bytes a parameter in place of
    8. "bfloat16_stochastic": 4 bytes, and the expectations of m and v are those without rounding; the name "bfloat16"
    is rounded to nearest, as in Optax. A complex m stays as it is, and with "int8" rows of one element and scalars.
    Under `jax.vmap`, and for shards that only `across_shards` knows of, all draw the same bits.
    """
    check_flag("bias_correction", bias_correction)
    corrections = {"bias_correction_mu": bias_correction, "bias_correction_nu": bias_correction}
    return optimizer(
        adam_algorithm(b1, b2, eps, eps_root, mu_dtype, nu_dtype=nu_dtype, nesterov=nesterov, **corrections),
        learning_rate,
        clip=clip,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        weight_decay_mode=weight_decay_mode,
        nonfinite=nonfinite,
    )
