"""The AMSGrad optimizer: Adam whose second moment never falls."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import check_choice, check_flag
from novoclip.optimizers.adam import AdamState, adam_algorithm, adam_direction
from novoclip.optimizers.algorithm import Algorithm, optimizer, scale_by
from novoclip.optimizers.step import Step
from novoclip.typing import Clip, DecayMode, Mask, ScalarOrSchedule, SkipNonfinite

MAXIMA = ("corrected", "raw")


class AMSGradState(NamedTuple):
    """The state of AMSGrad.

    Attributes:
      adam: that of Adam.
      root_max: the largest sqrt(v) so far, a pytree like the parameters.
    """

    adam: AdamState
    root_max: Any


def _amsgrad(
    b1: ScalarOrSchedule,
    b2: ScalarOrSchedule,
    eps: ScalarOrSchedule,
    eps_root: ScalarOrSchedule,
    mu_dtype: Any,
    bias_correction_mu: bool,
    bias_correction_nu: bool,
    maximum: str,
    nu_dtype: Any,
) -> Algorithm:
    check_flag("bias_correction_mu", bias_correction_mu)
    check_flag("bias_correction_nu", bias_correction_nu)
    check_choice("maximum", maximum, MAXIMA)
    corrections = {"bias_correction_mu": bias_correction_mu, "bias_correction_nu": bias_correction_nu}
    adam = adam_algorithm(b1, b2, eps, eps_root, mu_dtype, nu_dtype=nu_dtype, **corrections)
    corrected = bias_correction_nu and maximum == "corrected"

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
        moments = state.adam._replace(root_weight=()) if corrected else state.adam
        inside = step.unless_zero(eps_root, "eps_root")
        return adam_direction(moments, state.root_max, step.epsilon(eps, "eps"), inside)

    options = f"bias_correction_mu={bias_correction_mu}, bias_correction_nu={bias_correction_nu}"
    return Algorithm(init, learn, direction, f"amsgrad(maximum={maximum!r}, {options})", (follow,))


def scale_by_amsgrad(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: Any = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    maximum: Literal["corrected", "raw"] = "corrected",
    nu_dtype: Any = None,
    nonfinite: SkipNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Rescale gradients by AMSGrad: Adam's running mean, divided by the root of the largest second moment so far.

    m and v as in Adam, m' and v' corrected for their bias;  w_t = max(w_{t-1}, v_t');
    u = m_t' / (sqrt(w_t + eps_root) + eps). For maximum="raw", w_t = max(w_{t-1}, v_t), and w is corrected.

    Args:
      b1: decay rate of the first moment m, in [0, 1): a float, an array or a schedule.
      b2: decay rate of the second moment v, in [0, 1): a float, an array or a schedule.
      eps: added to the root of the second moment, at least 0: a float, an array or a schedule.
      eps_root: added to the second moment inside the root, at least 0: a float, an array or a schedule.
      mu_dtype: dtype of m; None for float32 (float64 for float64 parameters).
      bias_correction_mu: whether to divide m by 1 - b1^t. The paper corrects neither m nor v.
      bias_correction_nu: whether to divide v by 1 - b2^t.
      maximum: "corrected", the maximum of the corrected v, as in Optax, where the first gradients, whose correction
        is largest, may decide for good; or "raw", that of v, as published and in torch.
      nu_dtype: dtype of the root of the second moment; None for float32 (float64 for float64 parameters). 16 bits,
        rounded to nearest, are too few for a decay rate of 0.999: it hardly moves.
      nonfinite: "skip" skips a step whose gradients are not finite: updates are 0, and of the state only counters
        change; "propagate" does not check.

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
    algorithm = _amsgrad(b1, b2, eps, eps_root, mu_dtype, bias_correction_mu, bias_correction_nu, maximum, nu_dtype)
    return scale_by(algorithm, nonfinite=nonfinite)


def amsgrad(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: Any = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    maximum: Literal["corrected", "raw"] = "corrected",
    nu_dtype: Any = None,
    clip: Clip = None,
    weight_decay: ScalarOrSchedule | None = None,
    weight_decay_mask: Mask = None,
    weight_decay_mode: DecayMode = "decoupled",
    nonfinite: SkipNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    """The AMSGrad optimizer, with optional clipping and weight decay.

    w <- w - lr u, with the direction u of `scale_by_amsgrad`, plus weight decay.

    Args:
      learning_rate: at least 0: a float, an array or a schedule. Skipped steps do not advance schedules.
      b1: decay rate of the first moment m, in [0, 1): a float, an array or a schedule.
      b2: decay rate of the second moment v, in [0, 1): a float, an array or a schedule.
      eps: added to the root of the second moment, at least 0: a float, an array or a schedule.
      eps_root: added to the second moment inside the root, at least 0: a float, an array or a schedule.
      mu_dtype: dtype of m; None for float32 (float64 for float64 parameters).
      bias_correction_mu: whether to divide m by 1 - b1^t. The paper corrects neither m nor v.
      bias_correction_nu: whether to divide v by 1 - b2^t.
      maximum: "corrected", the maximum of the corrected v, as in Optax, where the first gradients, whose correction
        is largest, may decide for good; or "raw", that of v, as published and in torch.
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
      A GradientTransformation with an `OptimizerState` whose `moments` are an `AMSGradState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown. In `update`: if there is
        weight decay and the parameters are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = amsgrad(1e-3)
      >>> print(optimizer.update(jnp.array([3.0, -4.0]), optimizer.init(jnp.zeros(2)))[0])
      [-0.001  0.001]

    References:
      Reddi, Kale, Kumar, `On the convergence of Adam and beyond <https://arxiv.org/abs/1904.09237>`_, 2018.

    Parameters, order and defaults are those of `optax.amsgrad`; the differences are those of `adam`.
    torch's `Adam(amsgrad=True)` is maximum="raw".
    """
    return optimizer(
        _amsgrad(b1, b2, eps, eps_root, mu_dtype, bias_correction_mu, bias_correction_nu, maximum, nu_dtype),
        learning_rate,
        clip=clip,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        weight_decay_mode=weight_decay_mode,
        nonfinite=nonfinite,
    )
