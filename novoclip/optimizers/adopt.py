"""ADOPT: gradients divided by the second moment of before, within a bound that grows."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import Schedulable, check_number
from novoclip.mesh import broadcast_like
from novoclip.optimizers.algorithm import Algorithm, check_dtype, optimizer, scale_by
from novoclip.optimizers.moments import average, real_zeros, root_average, zeros
from novoclip.optimizers.step import Step
from novoclip.optimizers.thresholds import clipped_at
from novoclip.safe_math import ratio


class ADOPTState(NamedTuple):
    """What ADOPT remembers.

    Attributes:
      mu: m, a tree like the parameters.
      root: sqrt(v), likewise.
    """

    mu: Any
    root: Any


def _quarter_root(step: jax.Array) -> jax.Array:
    return step.astype(jnp.result_type(float)) ** 0.25


def _adopt(b1: Schedulable, b2: Schedulable, eps: Schedulable, bound: Schedulable | None, mu_dtype: Any) -> Algorithm:
    for name, number in (("b1", b1), ("b2", b2)):
        check_number(name, number, high=1.0)
    check_number("eps", eps, exclude_low=True)
    limit = _quarter_root if bound is None else bound
    check_number("bound", limit)
    check_dtype("mu_dtype", mu_dtype)

    def learn(gradients: Any, state: ADOPTState, step: Step) -> ADOPTState:
        first = step.number == 0
        small = step.value(eps, "eps")
        # Behind the first gradient, which only begins v, the quotient may be as large as it likes.
        most = jnp.where(first, 0, step.value(limit, "bound"))
        scaled = jax.tree.map(lambda g, r: ratio(g, jnp.maximum(r, small).astype(g.dtype)), gradients, state.root)
        bounds = jax.tree.map(lambda r: broadcast_like(most, r), state.root)
        learned = root_average(gradients, state.root, step.decay(b2, "b2"))
        return ADOPTState(
            average(clipped_at(scaled, bounds), state.mu, step.decay(b1, "b1")),
            jax.tree.map(lambda g, r: jnp.where(first, jnp.abs(g), r), gradients, learned),
        )

    def direction(gradients: Any, state: ADOPTState, step: Step) -> Any:
        del gradients, step
        return state.mu

    def init(shapes: Any) -> ADOPTState:
        return ADOPTState(zeros(shapes, mu_dtype), real_zeros(shapes))

    return Algorithm(init, learn, direction, "adopt")


def scale_by_adopt(
    b1: Schedulable = 0.9,
    b2: Schedulable = 0.9999,
    *,
    eps: Schedulable = 1e-6,
    bound: Schedulable | None = None,
    mu_dtype: Any = None,
    nonfinite: str = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Divide each number by its second moment of before, cut it off at a bound that grows, and average (ADOPT).

    The first gradient only begins v = g^2; u = 0. Then m_t = b1 m_{t-1} + (1 - b1) clip(g_t / max(sqrt(v_{t-1}), eps)),
    to within t^(1/4) for the t-th gradient after it; v_t = b2 v_{t-1} + (1 - b2) g_t^2;  u_t = m_t.

    Args:
      b1: decay of m in [0, 1]: a float, an array or a schedule.
      b2: decay of v in [0, 1], likewise.
      eps: above 0, in the gradients' units, likewise.
      bound: of the quotients, at least 0, likewise; None for t^(1/4).
      mu_dtype: the dtype in which m is kept; float32 by default (float64 for float64 parameters).
      nonfinite: "skip" skips a step with a gradient that is not finite, which no schedule counts; "propagate"
        does not look.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are an `ADOPTState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = scale_by_adopt()
      >>> state = rule.init(jnp.zeros(2))
      >>> for gradient in ([1.0, 1.0], [1.0, 1000.0]):
      ...     updates, state = rule.update(jnp.array(gradient), state)
      ...     print(updates.round(3))
      [0. 0.]
      [0.1 0.1]

    References:
      Taniguchi et al., `ADOPT: Modified Adam can converge with any b2 with the optimal rate
      <https://arxiv.org/abs/2411.02853>`_, 2024.
    """
    return scale_by(_adopt(b1, b2, eps, bound, mu_dtype), nonfinite=nonfinite)


def adopt(
    learning_rate: Schedulable,
    b1: Schedulable = 0.9,
    b2: Schedulable = 0.9999,
    *,
    eps: Schedulable = 1e-6,
    bound: Schedulable | None = None,
    mu_dtype: Any = None,
    clip: optax.GradientTransformation | None = None,
    weight_decay: Schedulable | None = None,
    weight_decay_mask: Any = None,
    decay: str = "decoupled",
    nonfinite: str = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Descend by ADOPT.

    w <- w - lr u, with the direction u of `scale_by_adopt`, plus weight decay.

    Args:
      learning_rate: lr, at least 0: a float, an array or a schedule, which counts the steps that were not skipped.
      b1: decay of m in [0, 1]: a float, an array or a schedule.
      b2: decay of v in [0, 1], likewise.
      eps: above 0, in the gradients' units, likewise.
      bound: of the quotients, at least 0, likewise; None for t^(1/4).
      mu_dtype: the dtype in which m is kept; float32 by default (float64 for float64 parameters).
      clip: any rule, applied to the gradient first.
      weight_decay: at least 0, or None: a float, an array or a schedule.
      weight_decay_mask: which parameters decay: a tree of booleans, or a function of the parameters.
      decay: "decoupled" adds weight_decay w to the direction, "coupled" to the clipped gradient.
      nonfinite: "skip" skips a step with a gradient that is not finite: its updates are 0,
        nothing but two counters moves. "propagate" does not look.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are an `ADOPTState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown. In `update`: if there is
        weight decay and the parameters are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> descent = adopt(1.0)
      >>> print(descent.update(jnp.array([3.0, -4.0]), descent.init(jnp.zeros(2)))[0])
      [-0. -0.]

    References:
      Taniguchi et al., `ADOPT: Modified Adam can converge with any b2 with the optimal rate
      <https://arxiv.org/abs/2411.02853>`_, 2024.
    """
    return optimizer(
        _adopt(b1, b2, eps, bound, mu_dtype),
        learning_rate,
        clip=clip,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        decay=decay,
        nonfinite=nonfinite,
    )
