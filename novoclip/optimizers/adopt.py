"""The ADOPT optimizer: gradients divided by the root of the previous second moment, clipped at a growing bound."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import check_number
from novoclip.mesh import broadcast_like
from novoclip.optimizers.algorithm import Algorithm, optimizer, scale_by
from novoclip.optimizers.kept import check_dtype
from novoclip.optimizers.moments import average, real_zeros, root_average, zeros
from novoclip.optimizers.step import Step
from novoclip.optimizers.thresholds import clipped_at
from novoclip.safe_math import ratio
from novoclip.typing import Clip, DecayMode, Mask, ScalarOrSchedule, SkipNonfinite


class ADOPTState(NamedTuple):
    """The state of ADOPT.

    Attributes:
      mu: m, a pytree like the parameters.
      root: sqrt(v), a pytree like the parameters.
    """

    mu: Any
    root: Any


def _quarter_root(step: jax.Array) -> jax.Array:
    return step.astype(jnp.result_type(float)) ** 0.25


def _adopt(
    b1: ScalarOrSchedule, b2: ScalarOrSchedule, eps: ScalarOrSchedule, bound: ScalarOrSchedule | None, mu_dtype: Any
) -> Algorithm:
    for name, number in (("b1", b1), ("b2", b2)):
        check_number(name, number, high=1.0)
    check_number("eps", eps, exclude_low=True)
    limit = _quarter_root if bound is None else bound
    check_number("bound", limit)
    check_dtype("mu_dtype", mu_dtype)

    def learn(gradients: Any, state: ADOPTState, step: Step) -> ADOPTState:
        first = step.number == 0
        small = step.value(eps, "eps")
        # The first gradient only sets v. Its quotient, which has no bound, is clipped to 0.
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
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.9999,
    *,
    eps: ScalarOrSchedule = 1e-6,
    bound: ScalarOrSchedule | None = None,
    mu_dtype: Any = None,
    nonfinite: SkipNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Rescale gradients by ADOPT: divided by the previous second moment's root, clipped, then averaged.

    The first gradient only sets v = g^2, with u = 0. Then
    m_t = b1 m_{t-1} + (1 - b1) clip(g_t / max(sqrt(v_{t-1}), eps));  v_t = b2 v_{t-1} + (1 - b2) g_t^2;  u_t = m_t,
    where each element is clipped at t^(1/4) for the t-th gradient after the first.

    Args:
      b1: decay rate of m in [0, 1]: a float, an array or a schedule.
      b2: decay rate of v in [0, 1]: a float, an array or a schedule.
      eps: least divisor, above 0, in the gradients' units: a float, an array or a schedule.
      bound: limit of the quotients, at least 0: a float, an array or a schedule; None for t^(1/4).
      mu_dtype: dtype of m; None for float32 (float64 for float64 parameters).
      nonfinite: "skip" skips a step whose gradients are not finite: updates are 0, and of the state only counters
        change; "propagate" does not check.

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

    The defaults are those of the authors' code and of `optax.contrib.adopt`.
    """
    return scale_by(_adopt(b1, b2, eps, bound, mu_dtype), nonfinite=nonfinite)


def adopt(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.9999,
    *,
    eps: ScalarOrSchedule = 1e-6,
    bound: ScalarOrSchedule | None = None,
    mu_dtype: Any = None,
    clip: Clip = None,
    weight_decay: ScalarOrSchedule | None = None,
    weight_decay_mask: Mask = None,
    weight_decay_mode: DecayMode = "decoupled",
    nonfinite: SkipNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    """The ADOPT optimizer, with optional clipping and weight decay.

    w <- w - lr u, with the direction u of `scale_by_adopt`, plus weight decay.

    Args:
      learning_rate: at least 0: a float, an array or a schedule. Skipped steps do not advance schedules.
      b1: decay rate of m in [0, 1]: a float, an array or a schedule.
      b2: decay rate of v in [0, 1]: a float, an array or a schedule.
      eps: least divisor, above 0, in the gradients' units: a float, an array or a schedule.
      bound: limit of the quotients, at least 0: a float, an array or a schedule; None for t^(1/4).
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
      A GradientTransformation with an `OptimizerState` whose `moments` are an `ADOPTState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown. In `update`: if there is
        weight decay and the parameters are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = adopt(1.0)
      >>> print(optimizer.update(jnp.array([3.0, -4.0]), optimizer.init(jnp.zeros(2)))[0])
      [-0. -0.]

    References:
      Taniguchi et al., `ADOPT: Modified Adam can converge with any b2 with the optimal rate
      <https://arxiv.org/abs/2411.02853>`_, 2024.

    The defaults are those of the authors' code and of `optax.contrib.adopt`.
    """
    return optimizer(
        _adopt(b1, b2, eps, bound, mu_dtype),
        learning_rate,
        clip=clip,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        weight_decay_mode=weight_decay_mode,
        nonfinite=nonfinite,
    )
