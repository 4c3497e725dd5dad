"""The ACClip optimizer: momentum, clipped per element at the running size of the gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import check_flag, check_number
from novoclip.optimizers.algorithm import Algorithm, optimizer, scale_by
from novoclip.optimizers.kept import check_dtype
from novoclip.optimizers.moments import average, real_zeros, zeros
from novoclip.optimizers.step import Step
from novoclip.optimizers.thresholds import clipped_at
from novoclip.ranges import is_limit, no_limit
from novoclip.safe_math import power, ratio
from novoclip.typing import Clip, DecayMode, Mask, ScalarOrSchedule, SkipNonfinite


class ACClipState(NamedTuple):
    """The state of ACClip.

    Attributes:
      mu: m, a pytree like the parameters.
      size: tau, the running mean of |g|^alpha to the power 1 / alpha, a pytree like the parameters.
      size_before: tau of the step before, which limits the present m; `()` unless `previous` is set.
    """

    mu: Any
    size: Any
    size_before: Any


def _acclip(
    b1: ScalarOrSchedule,
    b2: ScalarOrSchedule,
    eps: ScalarOrSchedule,
    alpha: ScalarOrSchedule,
    previous: bool,
    mu_dtype: Any,
) -> Algorithm:
    for name, number in (("b1", b1), ("b2", b2)):
        check_number(name, number, high=1.0)
    check_number("eps", eps)
    check_number("alpha", alpha, low=1.0, high=2.0)
    check_flag("previous", previous)
    check_dtype("mu_dtype", mu_dtype)

    def init(shapes: Any) -> ACClipState:
        return ACClipState(zeros(shapes, mu_dtype), real_zeros(shapes), real_zeros(shapes) if previous else ())

    def learn(gradients: Any, state: ACClipState, step: Step) -> ACClipState:
        kept, taken = step.decay(b2, "b2")
        exponent = step.value(alpha, "alpha")

        def mean(g: jax.Array, size: jax.Array) -> jax.Array:
            # Both are divided by the larger, so that powers stay in range.
            modulus = jnp.abs(g)
            largest = jnp.maximum(modulus, size)
            by = jnp.where(largest > 0, largest, 1)
            total = kept * power(ratio(size, by), exponent) + taken * power(ratio(modulus, by), exponent)
            return largest * power(total, 1 / exponent)

        size = jax.tree.map(mean, gradients, state.size)
        return ACClipState(average(gradients, state.mu, step.decay(b1, "b1")), size, state.size if previous else ())

    def direction(gradients: Any, state: ACClipState, step: Step) -> Any:
        del gradients
        small = step.value(eps, "eps")
        bound = state.size
        if previous:
            # An element whose gradient was 0 so far has no limit yet.
            bound = jax.tree.map(lambda r: jnp.where(r > 0, r, no_limit(r.dtype)), state.size_before)

        def limit(m: jax.Array, r: jax.Array) -> jax.Array:
            modulus = jnp.abs(m)
            size = modulus + small
            limited = jnp.where(is_limit(r), r, 0) * ratio(modulus, jnp.where(size > 0, size, 1))
            return jnp.where(is_limit(r), limited, r)

        return clipped_at(state.mu, jax.tree.map(limit, state.mu, bound))

    return Algorithm(init, learn, direction, f"acclip(previous={previous})")


def scale_by_acclip(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.99,
    *,
    eps: ScalarOrSchedule = 1e-5,
    alpha: ScalarOrSchedule = 1.0,
    previous: bool = False,
    mu_dtype: Any = None,
    nonfinite: SkipNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Rescale gradients by ACClip: their running mean, clipped per element at a running mean of their size.

    m_t = b1 m_{t-1} + (1 - b1) g_t;  tau_t^alpha = b2 tau_{t-1}^alpha + (1 - b2) |g_t|^alpha;
    u_t = m_t min(1, tau_t / (|m_t| + eps)), or with tau_{t-1} if `previous` is set (no limit where that is 0).

    An outlier enters tau too: one of k times the usual size leaves u at (1 - b2) k times its usual size, and
    `previous` only delays that by a step. Against outliers, put a clipping rule before it, `clip=` in `acclip`.

    Args:
      b1: decay rate of m in [0, 1]: a float, an array or a schedule.
      b2: decay rate of tau in [0, 1]: a float, an array or a schedule.
      eps: added to |m|, in the gradients' units, at least 0: a float, an array or a schedule.
      alpha: the power of |g| that tau averages, in [1, 2]: a float, an array or a schedule.
      previous: whether m is compared with the tau of the step before.
      mu_dtype: dtype of m; None for float32 (float64 for float64 parameters).
      nonfinite: "skip" skips a step whose gradients are not finite: updates are 0, and of the state only counters
        change; "propagate" does not check.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are an `ACClipState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = scale_by_acclip()
      >>> print(rule.update(jnp.array([3.0, -4.0]), rule.init(jnp.zeros(2)))[0].round(3))
      [ 0.03 -0.04]

    References:
      Zhang et al., `Why are adaptive methods good for attention models?
      <https://arxiv.org/abs/1912.03194>`_, 2020.

    The defaults are the paper's.
    """
    return scale_by(_acclip(b1, b2, eps, alpha, previous, mu_dtype), nonfinite=nonfinite)


def acclip(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.99,
    *,
    eps: ScalarOrSchedule = 1e-5,
    alpha: ScalarOrSchedule = 1.0,
    previous: bool = False,
    mu_dtype: Any = None,
    clip: Clip = None,
    weight_decay: ScalarOrSchedule | None = None,
    weight_decay_mask: Mask = None,
    weight_decay_mode: DecayMode = "decoupled",
    nonfinite: SkipNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    """The ACClip optimizer, with optional clipping and weight decay.

    w <- w - lr u, with the direction u of `scale_by_acclip`, plus weight decay. There is no bias
    correction: the first step is 1 - b1 times as long as later ones, and no longer than tau.

    Args:
      learning_rate: at least 0: a float, an array or a schedule. Skipped steps do not advance schedules.
      b1: decay rate of m in [0, 1]: a float, an array or a schedule.
      b2: decay rate of tau in [0, 1]: a float, an array or a schedule.
      eps: added to |m|, in the gradients' units, at least 0: a float, an array or a schedule.
      alpha: the power of |g| that tau averages, in [1, 2]: a float, an array or a schedule.
      previous: whether m is compared with the tau of the step before.
      mu_dtype: dtype of m; None for float32 (float64 for float64 parameters).
      clip: a clipping rule that is applied to the gradients first, such as `novoclip.clip_by_global_norm(1.0)`.
      weight_decay: strength of the weight decay, at least 0: a float, an array or a schedule; None or 0 for none.
      weight_decay_mask: which parameters decay: a pytree of booleans, or a function of the parameters that returns one;
        None for all.
      weight_decay_mode: "decoupled" adds weight_decay * w to the update, before the learning rate (AdamW); "coupled"
        adds it to the clipped gradients (L2 regularization).
      nonfinite: "skip" skips a step whose gradients are not finite: updates are 0, and of the state only counters
        change; "propagate" does not check.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are an `ACClipState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown. In `update`: if there is
        weight decay and the parameters are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = acclip(1.0)
      >>> print(optimizer.update(jnp.array([3.0, -4.0]), optimizer.init(jnp.zeros(2)))[0].round(3))
      [-0.03  0.04]

    References:
      Zhang et al., `Why are adaptive methods good for attention models?
      <https://arxiv.org/abs/1912.03194>`_, 2020.

    The defaults are the paper's. A port to torch has alpha=2, for which hardly anything is clipped, and also divides by
    Adam's root.
    """
    return optimizer(
        _acclip(b1, b2, eps, alpha, previous, mu_dtype),
        learning_rate,
        clip=clip,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        weight_decay_mode=weight_decay_mode,
        nonfinite=nonfinite,
    )
