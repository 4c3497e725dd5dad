"""AMSGrad: Adam whose second moment never falls."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import Schedulable, check_choice
from novoclip.optimizers.adam import AdamState, adam_algorithm, adam_direction
from novoclip.optimizers.algorithm import Algorithm, optimizer, scale_by
from novoclip.optimizers.step import Step

MAXIMA = ("raw", "corrected")


class AMSGradState(NamedTuple):
    """What AMSGrad remembers.

    Attributes:
      adam: Adam's own.
      root_max: the largest sqrt(v) so far, a tree like the parameters.
    """

    adam: AdamState
    root_max: Any


def _amsgrad(
    b1: Schedulable,
    b2: Schedulable,
    eps: Schedulable,
    eps_root: Schedulable,
    bias_correction: bool,
    maximum: str,
    mu_dtype: Any,
    nu_dtype: Any,
) -> Algorithm:
    check_choice("maximum", maximum, MAXIMA)
    adam = adam_algorithm(b1, b2, eps, eps_root, bias_correction, mu_dtype, nu_dtype)
    corrected = bias_correction and maximum == "corrected"

    def init(shapes: Any) -> AMSGradState:
        state = adam.init(shapes)
        return AMSGradState(state, jax.tree.map(jnp.zeros_like, state.root))

    def learn(gradients: Any, state: AMSGradState, step: Step) -> AMSGradState:
        return AMSGradState(adam.learn(gradients, state.adam, step), state.root_max)

    def follow(gradients: Any, state: AMSGradState, before: AMSGradState, step: Step) -> AMSGradState:
        del gradients
        by = jnp.sqrt(state.adam.root_weight) if corrected else jnp.ones((), step.dtype)
        by = jnp.where(by > 0, by, 1)
        tops = jax.tree.map(lambda top, root: jnp.maximum(top, root / by), before.root_max, state.adam.root)
        return state._replace(root_max=tops)

    def direction(gradients: Any, state: AMSGradState, step: Step) -> Any:
        del gradients
        moments = state.adam._replace(root_weight=jnp.ones((), step.dtype)) if corrected else state.adam
        inside = step.unless_zero(eps_root, "eps_root")
        return adam_direction(moments, state.root_max, step.epsilon(eps, "eps"), inside)

    return Algorithm(init, learn, direction, f"amsgrad(maximum={maximum!r}, bias_correction={bias_correction})", follow)


def scale_by_amsgrad(
    b1: Schedulable = 0.9,
    b2: Schedulable = 0.999,
    *,
    eps: Schedulable = 1e-8,
    eps_root: Schedulable = 0.0,
    bias_correction: bool = True,
    maximum: str = "raw",
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    nonfinite: str = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Divide Adam's mean by the root of the largest second moment so far (AMSGrad).

    m and v as in Adam;  w_t = max(w_{t-1}, v_t);  u = m_t / (sqrt(w_t + eps_root) + eps), with m_t
    and w_t corrected for their bias. For maximum "corrected", w_t = max(w_{t-1}, v_t / (1 - b2^t)).

    Args:
      b1: decay of m in [0, 1): a float, an array or a schedule, such as 0.9 * 0.999**t.
      b2: decay of v in [0, 1), likewise.
      eps: outside of the root, at least 0: a float, an array or a schedule.
      eps_root: inside of it, likewise.
      bias_correction: whether to divide m and v by the weights that they have gathered. Without, the
        first steps are (1 - b1) / sqrt(1 - b2) times as long: 3.2 times with the defaults.
      maximum: "raw", that of v, as published and in torch; or "corrected", as in Optax, where
        the first gradients, whose correction is largest, may decide for good.
      mu_dtype: the dtype in which m is kept; float32 by default (float64 for float64 parameters).
      nu_dtype: that of sqrt(v), likewise. With 16 bits and b2 = 0.999 it hardly moves.
      nonfinite: "skip" skips a step with a gradient that is not finite, which no schedule counts; "propagate"
        does not look.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are an `AMSGradState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = scale_by_amsgrad()
      >>> print(rule.update(jnp.array([3.0, -1e-3, 0.0]), rule.init(jnp.zeros(3)))[0].round(4))
      [ 1. -1.  0.]

    References:
      Reddi, Kale, Kumar, `On the convergence of Adam and beyond <https://arxiv.org/abs/1904.09237>`_, 2018.
    """
    return scale_by(_amsgrad(b1, b2, eps, eps_root, bias_correction, maximum, mu_dtype, nu_dtype), nonfinite=nonfinite)


def amsgrad(
    learning_rate: Schedulable,
    b1: Schedulable = 0.9,
    b2: Schedulable = 0.999,
    *,
    eps: Schedulable = 1e-8,
    eps_root: Schedulable = 0.0,
    bias_correction: bool = True,
    maximum: str = "raw",
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    clip: optax.GradientTransformation | None = None,
    weight_decay: Schedulable | None = None,
    weight_decay_mask: Any = None,
    decay: str = "decoupled",
    nonfinite: str = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Descend by AMSGrad.

    w <- w - lr u, with the direction u of `scale_by_amsgrad`, plus weight decay.

    Args:
      learning_rate: lr, at least 0: a float, an array or a schedule, which counts the steps that were not skipped.
      b1: decay of m in [0, 1): a float, an array or a schedule, such as 0.9 * 0.999**t.
      b2: decay of v in [0, 1), likewise.
      eps: outside of the root, at least 0: a float, an array or a schedule.
      eps_root: inside of it, likewise.
      bias_correction: whether to divide m and v by the weights that they have gathered. Without, the
        first steps are (1 - b1) / sqrt(1 - b2) times as long: 3.2 times with the defaults.
      maximum: "raw", that of v, as published and in torch; or "corrected", as in Optax, where
        the first gradients, whose correction is largest, may decide for good.
      mu_dtype: the dtype in which m is kept; float32 by default (float64 for float64 parameters).
      nu_dtype: that of sqrt(v), likewise. With 16 bits and b2 = 0.999 it hardly moves.
      clip: any rule, applied to the gradient first.
      weight_decay: at least 0, or None: a float, an array or a schedule.
      weight_decay_mask: which parameters decay: a tree of booleans, or a function of the parameters.
      decay: "decoupled" adds weight_decay w to the direction, "coupled" to the clipped gradient.
      nonfinite: "skip" skips a step with a gradient that is not finite: its updates are 0,
        nothing but two counters moves. "propagate" does not look.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are an `AMSGradState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown. In `update`: if there is
        weight decay and the parameters are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> descent = amsgrad(1e-3)
      >>> print(descent.update(jnp.array([3.0, -4.0]), descent.init(jnp.zeros(2)))[0])
      [-0.001  0.001]

    References:
      Reddi, Kale, Kumar, `On the convergence of Adam and beyond <https://arxiv.org/abs/1904.09237>`_, 2018.

    The paper corrects no bias: bias_correction=False.
    """
    return optimizer(
        _amsgrad(b1, b2, eps, eps_root, bias_correction, maximum, mu_dtype, nu_dtype),
        learning_rate,
        clip=clip,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        decay=decay,
        nonfinite=nonfinite,
    )
