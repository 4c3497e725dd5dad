"""Momentum: heavy ball, Nesterov, and averaged."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from novoclip.arguments import check_choice, check_flag, check_number
from novoclip.optimizers.algorithm import Algorithm, optimizer, scale_by
from novoclip.optimizers.kept import check_dtype
from novoclip.optimizers.moments import average, zeros
from novoclip.optimizers.step import Step
from novoclip.typing import Clip, DecayMode, Mask, ScalarOrSchedule, SkipNonfinite

FORMS = ("heavy_ball", "averaged")


class MomentumState(NamedTuple):
    """The state of momentum.

    Attributes:
      trace: v, a pytree like the parameters.
    """

    trace: Any


def momentum_algorithm(
    decay: ScalarOrSchedule,
    form: str,
    dampening: ScalarOrSchedule | None,
    nesterov: bool,
    accumulator_dtype: Any,
    name: str = "decay",
) -> Algorithm:
    """Return the formula alone; `name` is what error messages call the decay."""
    check_number(name, decay, high=1.0)
    check_choice("form", form, FORMS)
    check_flag("nesterov", nesterov)
    check_dtype("accumulator_dtype", accumulator_dtype, random=True)
    if dampening is not None:
        check_number("dampening", dampening, high=1.0)
        if form == "averaged" or nesterov:
            msg = f"dampening must be None in the averaged form and with nesterov; got {dampening!r}"
            raise ValueError(msg)

    def learn(gradients: Any, state: MomentumState, step: Step) -> MomentumState:
        b, rest = step.decay(decay, name)
        if form == "averaged":
            return MomentumState(average(gradients, state.trace, (b, rest)))
        taken = jnp.ones((), step.dtype)
        if dampening is not None:
            taken = jnp.where(step.number == 0, 1, step.decay(dampening, "dampening")[1])
        return MomentumState(jax.tree.map(lambda g, v: b * v + taken * g, gradients, state.trace))

    def direction(gradients: Any, state: MomentumState, step: Step) -> Any:
        if not nesterov:
            return state.trace
        b, rest = step.decay(decay, name)
        taken = rest if form == "averaged" else jnp.ones((), step.dtype)
        return jax.tree.map(lambda g, v: taken * g + b * v, gradients, state.trace)

    def init(shapes: Any) -> MomentumState:
        return MomentumState(zeros(shapes, accumulator_dtype))

    return Algorithm(init, learn, direction, f"momentum(form={form!r})")


def trace(
    decay: ScalarOrSchedule,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
    *,
    dampening: ScalarOrSchedule | None = None,
    form: Literal["heavy_ball", "averaged"] = "heavy_ball",
    nonfinite: SkipNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    """Replace gradients by a decaying sum of them: momentum, without a learning rate.

    v_0 = 0, and
        v_t = decay v_{t-1} + (1 - dampening) g_t;  u = v_t, or g_t + decay v_t with nesterov      "heavy_ball"
        v_t = decay v_{t-1} + (1 - decay) g_t;      u = v_t, or (1 - decay) g_t + decay v_t        "averaged"
    where the first step is not dampened, as in torch.

    Args:
      decay: decay rate of v in [0, 1]: a float, an array or a schedule.
      nesterov: whether to use Nesterov momentum, which looks one step ahead.
      accumulator_dtype: dtype of the accumulator v; None for float32 (float64 for float64 parameters).
      dampening: in [0, 1]: a float, an array or a schedule; None for 0. It must be None with nesterov.
      form: "heavy_ball" or "averaged". The steps of the heavy ball are 1 / (1 - decay) times longer.
      nonfinite: "skip" skips a step whose gradients are not finite: updates are 0, and of the state only counters
        change; "propagate" does not check.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are a `MomentumState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> rule = trace(0.5)
      >>> state = rule.init(jnp.zeros(1))
      >>> for _ in range(3):
      ...     updates, state = rule.update(jnp.ones(1), state)
      ...     print(updates)
      [1.]
      [1.5]
      [1.75]

    References:
      Polyak, `Some methods of speeding up the convergence of iteration methods
      <https://doi.org/10.1016/0041-5553(64)90137-5>`_, 1964. Sutskever et al., `On the importance
      of initialization and momentum in deep learning
      <https://proceedings.mlr.press/v28/sutskever13.html>`_, 2013.

    Parameters, order and defaults are those of `optax.trace`; the differences are those of `sgd`.
    """
    return scale_by(momentum_algorithm(decay, form, dampening, nesterov, accumulator_dtype), nonfinite=nonfinite)


def momentum(
    learning_rate: ScalarOrSchedule,
    decay: ScalarOrSchedule = 0.9,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
    *,
    dampening: ScalarOrSchedule | None = None,
    form: Literal["heavy_ball", "averaged"] = "heavy_ball",
    clip: Clip = None,
    weight_decay: ScalarOrSchedule | None = None,
    weight_decay_mask: Mask = None,
    weight_decay_mode: DecayMode = "decoupled",
    nonfinite: SkipNonfinite = "skip",
) -> optax.GradientTransformationExtraArgs:
    """The momentum optimizer: `sgd` with momentum, which may also be averaged.

    w <- w - lr u, with the direction u of `trace`, plus weight decay.

    Args:
      learning_rate: at least 0: a float, an array or a schedule. Skipped steps do not advance schedules.
      decay: decay rate of v in [0, 1]: a float, an array or a schedule.
      nesterov: whether to use Nesterov momentum, which looks one step ahead.
      accumulator_dtype: dtype of the accumulator v; None for float32 (float64 for float64 parameters).
      dampening: in [0, 1]: a float, an array or a schedule; None for 0. It must be None with nesterov.
      form: "heavy_ball" or "averaged". The steps of the heavy ball are 1 / (1 - decay) times longer.
      clip: a clipping rule that is applied to the gradients first, such as `novoclip.clip_by_global_norm(1.0)`.
      weight_decay: strength of the weight decay, at least 0: a float, an array or a schedule; None or 0 for none.
      weight_decay_mask: which parameters decay: a pytree of booleans, or a function of the parameters that returns one;
        None for all.
      weight_decay_mode: "decoupled" adds weight_decay * w to the update, before the learning rate (AdamW); "coupled"
        adds it to the clipped gradients (L2 regularization).
      nonfinite: "skip" skips a step whose gradients are not finite: updates are 0, and of the state only counters
        change; "propagate" does not check.

    Returns:
      A GradientTransformation with an `OptimizerState` whose `moments` are a `MomentumState`;
      updates have the gradients' dtypes.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or a name is unknown. In `update`: if there is
        weight decay and the parameters are absent.

    Example:
      >>> import jax.numpy as jnp
      >>> optimizer = momentum(0.1)
      >>> print(optimizer.update(jnp.ones(1), optimizer.init(jnp.ones(1)))[0])
      [-0.1]

    References:
      Polyak, `Some methods of speeding up the convergence of iteration methods
      <https://doi.org/10.1016/0041-5553(64)90137-5>`_, 1964. Sutskever et al., `On the importance
      of initialization and momentum in deep learning
      <https://proceedings.mlr.press/v28/sutskever13.html>`_, 2013.

    accumulator_dtype also takes "int8" and "bfloat16_stochastic", which `adam` describes.
    """
    return optimizer(
        momentum_algorithm(decay, form, dampening, nesterov, accumulator_dtype),
        learning_rate,
        clip=clip,
        weight_decay=weight_decay,
        weight_decay_mask=weight_decay_mask,
        weight_decay_mode=weight_decay_mode,
        nonfinite=nonfinite,
    )
