"""ACClip: momentum clipped at the running size of each number."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import Schedulable, check_flag, check_number
from novoclip.optimizers.algorithm import Algorithm, check_dtype, optimizer, scale_by
from novoclip.optimizers.moments import average, real_zeros, zeros
from novoclip.optimizers.step import Step
from novoclip.optimizers.thresholds import clipped_at
from novoclip.ranges import is_limit, no_limit
from novoclip.safe_math import power, ratio


class ACClipState(NamedTuple):
    """What ACClip remembers.

    Attributes:
      mu: m, a tree like the parameters.
      size: tau, the running mean of |g|^alpha to the power 1 / alpha, likewise.
      size_before: that of the step before, which limits the present m; `()` unless it is asked for.
    """

    mu: Any
    size: Any
    size_before: Any


def _acclip(
    b1: Schedulable, b2: Schedulable, eps: Schedulable, alpha: Schedulable, previous: bool, mu_dtype: Any
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
            # Divided by the larger, so that powers stay in range.
            n = jnp.abs(g)
            largest = jnp.maximum(n, size)
            by = jnp.where(largest > 0, largest, 1)
            total = kept * power(ratio(size, by), exponent) + taken * power(ratio(n, by), exponent)
            return largest * power(total, 1 / exponent)

        size = jax.tree.map(mean, gradients, state.size)
        return ACClipState(average(gradients, state.mu, step.decay(b1, "b1")), size, state.size if previous else ())

    def direction(gradients: Any, state: ACClipState, step: Step) -> Any:
        del gradients
        small = step.value(eps, "eps")
        bound = state.size
        if previous:
            # A number that was never seen before has no limit yet.
            bound = jax.tree.map(lambda r: jnp.where(r > 0, r, no_limit(r.dtype)), state.size_before)

        def limit(m: jax.Array, r: jax.Array) -> jax.Array:
            n = jnp.abs(m)
            limited = jnp.where(is_limit(r), r, 0) * ratio(n, jnp.where(n + small > 0, n + small, 1))
            return jnp.where(is_limit(r), limited, r)

        return clipped_at(state.mu, jax.tree.map(limit, state.mu, bound))

    return Algorithm(init, learn, direction, f"acclip(previous={previous})")


def scale_by_acclip(
    b1: Schedulable = 0.9,
    b2: Schedulable = 0.99,
    *,
    eps: Schedulable = 1e-5,
    alpha: Schedulable = 1.0,
    previous: bool = False,
    mu_dtype: Any = None,
    nonfinite: str = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Clip momentum, number by number, at a running mean of the gradient's size (ACClip).

    m_t = b1 m_{t-1} + (1 - b1) g_t;  tau_t^alpha = b2 tau_{t-1}^alpha + (1 - b2) |g_t|^alpha;
    u_t = m_t min(1, tau_t / (|m_t| + eps)), or with tau_{t-1} for `previous` (no limit where that is 0).

    The outlier itself enters tau: one of k times the usual size leaves u at (1 - b2) k times, and
    `previous` only delays that by a step. Put a `clip=` in front against outliers.

    Args:
      b1: decay of m in [0, 1]: a float, an array or a schedule.
      b2: decay of tau in [0, 1], likewise.
      eps: at least 0, in the gradients' units, likewise.
      alpha: in [1, 2], likewise.
      previous: whether m is compared with the tau of the step before.
      mu_dtype: the dtype in which m is kept; float32 by default (float64 for float64 parameters).
      nonfinite: "skip" skips a step with a gradient that is not finite, which no schedule counts; "propagate"
        does not look.

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
    """
    return scale_by(_acclip(b1, b2, eps, alpha, previous, mu_dtype), nonfinite=nonfinite)


def acclip(
    learning_rate: Schedulable,
    b1: Schedulable = 0.9,
    b2: Schedulable = 0.99,
    *,
    eps: Schedulable = 1e-5,
    alpha: Schedulable = 1.0,
    previous: bool = False,
    mu_dtype: Any = None,
    clip: optax.GradientTransformation | None = None,
    weight_decay: Schedulable | None = None,
    weight_decay_mask: Any = None,
    decay: str = "decoupled",
    nonfinite: str = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Descend by ACClip.

    w <- w - lr u, with the direction u of `scale_by_acclip`, plus weight decay. As there is no bias
    correction, the first steps are 1 - b1 as long as later ones, and no longer than tau.

    Args:
      learning_rate: lr, at least 0: a float, an array or a schedule, which counts the steps that were not skipped.
      b1: decay of m in [0, 1]: a float, an array or a schedule.
      b2: decay of tau in [0, 1], likewise.
      eps: at least 0, in the gradients' units, likewise.
      alpha: the power whose mean tau is, in [1, 2], likewise.
      previous: whether m is compared with the tau of the step before.
      mu_dtype: the dtype in which m is kept; float32 by default (float64 for float64 parameters).
      clip: any rule, applied to the gradient first.
      weight_decay: at least 0, or None: a float, an array or a schedule.
      weight_decay_mask: which parameters decay: a tree of booleans, or a function of the parameters.
      decay: "decoupled" adds weight_decay w to the direction, "coupled" to the clipped gradient.
      nonfinite: "skip" skips a step with a gradient that is not finite: its updates are 0,
        nothing but two counters moves. "propagate" does not look.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are an `ACClipState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown. In `update`: if there is
        weight decay and the parameters are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> descent = acclip(1.0)
      >>> print(descent.update(jnp.array([3.0, -4.0]), descent.init(jnp.zeros(2)))[0].round(3))
      [-0.03  0.04]

    References:
      Zhang et al., `Why are adaptive methods good for attention models?
      <https://arxiv.org/abs/1912.03194>`_, 2020.

    A port to torch has alpha = 2, for which hardly anything is clipped, and divides by Adam's root besides.
    """
    return optimizer(
        _acclip(b1, b2, eps, alpha, previous, mu_dtype),
        learning_rate,
        clip=clip,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        decay=decay,
        nonfinite=nonfinite,
    )
