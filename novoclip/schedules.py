"""Learning-rate schedules that Optax does not have. The README shows them together with Optax's.

Which steps a schedule counts depends on what evaluates it. The optimizers of this package count the steps that they did
not skip. Rules, and Optax's own transforms, count every update. Inside a guard, or in an optimizer's `clip=`, a skipped
step does not count as an update.
"""

import jax
import jax.numpy as jnp

from novoclip.arguments import check_choice, check_integer, check_number
from novoclip.typing import Scalar, ScalarOrSchedule, Schedule

WARMUPS = ("linear", "exponential")
POWERS = {"linear": 1.0, "square_root": 0.5}


def inverse_time_decay(
    init_value: Scalar, rate: Scalar, *, transition_steps: int = 1, staircase: bool = False
) -> Schedule:
    """Return a schedule that decays as 1 / (1 + rate t): inverse time decay.

    init_value / (1 + rate t / transition_steps), where t counts the steps from 0.

    Args:
      init_value: the value at step 0, at least 0.
      rate: decay rate, at least 0.
      transition_steps: steps per unit of time, such as the steps of an epoch.
      staircase: whether time is rounded down to whole units.

    Returns:
      A function from a step to the value, a float32 scalar. The optimizers of this package count the steps that
      were not skipped; rules and Optax's transforms count all steps.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range.

    Example:
      >>> schedule = inverse_time_decay(0.1, 0.5)
      >>> [round(float(schedule(step)), 4) for step in (0, 2, 6)]
      [0.1, 0.05, 0.025]
    """
    check_number("init_value", init_value)
    check_number("rate", rate)
    check_integer("transition_steps", transition_steps, low=1)

    def schedule(step: jax.Array) -> jax.Array:
        time = jnp.asarray(step, jnp.float32) / transition_steps
        return jnp.asarray(init_value / (1 + rate * (jnp.floor(time) if staircase else time)))

    return schedule


def untuned_warmup(learning_rate: ScalarOrSchedule, b2: float = 0.999, *, form: str = "linear") -> Schedule:
    """Return a schedule that warms a learning rate up over as many steps as Adam's second moment needs.

    lr_t min(1, t (1 - b2) / 2) if "linear", over 2 / (1 - b2) steps, or lr_t (1 - exp(-(1 - b2) t)) if "exponential";
    t counts the steps from 1.

    Args:
      learning_rate: lr, at least 0: a float, an array or a schedule.
      b2: Adam's b2, in [0, 1).
      form: "linear" or "exponential".

    Returns:
      A function from a step, which counts from 0, to the learning rate. The optimizers of this package count the
      steps that were not skipped; Optax's count all steps.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or `form` is unknown.

    Example:
      >>> schedule = untuned_warmup(1e-3, b2=0.99)
      >>> [round(float(schedule(step)), 6) for step in (0, 99, 199, 1000)]
      [5e-06, 0.0005, 0.001, 0.001]

    References:
      Ma, Yarats, `On the adequacy of untuned warmup for adaptive optimization
      <https://arxiv.org/abs/1910.04209>`_, 2019.
    """
    check_number("learning_rate", learning_rate)
    check_number("b2", b2, high=1.0, exclude_high=True)
    check_choice("form", form, WARMUPS)

    def schedule(step: jax.Array) -> jax.Array:
        progress = (jnp.asarray(step, jnp.float32) + 1) * (1 - b2)
        part = jnp.minimum(1, progress / 2) if form == "linear" else -jnp.expm1(-progress)
        return part * (learning_rate(step) if callable(learning_rate) else learning_rate)

    return schedule


def batch_scaled(learning_rate: Scalar, batch_size: int, base_batch_size: int, *, rule: str = "linear") -> Scalar:
    """Scale a learning rate from one batch size to another.

    lr batch_size / base_batch_size ("linear"), or lr sqrt(batch_size / base_batch_size)
    ("square_root"). The rate rises with the batch size; in `batch_damped` it falls.

    Args:
      learning_rate: lr, tuned for `base_batch_size`, at least 0.
      batch_size: examples per batch.
      base_batch_size: examples per batch for which `learning_rate` was tuned.
      rule: "linear", for SGD, or "square_root", for Adam and its variants.

    Returns:
      The learning rate.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or `rule` is unknown.

    Example:
      >>> batch_scaled(0.1, 1024, 256), batch_scaled(0.1, 1024, 256, rule="square_root")
      (0.4, 0.2)

    References:
      Goyal et al., `Accurate, large minibatch SGD: training ImageNet in 1 hour
      <https://arxiv.org/abs/1706.02677>`_, 2017. Malladi et al., `On the SDEs and scaling rules for
      adaptive gradient algorithms <https://arxiv.org/abs/2205.10287>`_, 2022.
    """
    check_number("learning_rate", learning_rate)
    check_integer("batch_size", batch_size, low=1)
    check_integer("base_batch_size", base_batch_size, low=1)
    check_choice("rule", rule, tuple(POWERS))
    return learning_rate * (batch_size / base_batch_size) ** POWERS[rule]


def batch_damped(learning_rate: Scalar, batch_size: int, warmup_batch_size: int) -> Scalar:
    """Lower a learning rate as the batch size grows.

    lr / (1 + batch_size / warmup_batch_size), as published. This is the opposite of the usual scaling, `batch_scaled`,
    by which the rate rises with the batch size.

    Args:
      learning_rate: lr, at least 0.
      batch_size: examples per batch.
      warmup_batch_size: examples per batch at which the rate is halved.

    Returns:
      The learning rate.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range.

    Example:
      >>> batch_damped(0.1, 768, 256)
      0.025
    """
    check_number("learning_rate", learning_rate)
    check_integer("batch_size", batch_size, low=1)
    check_integer("warmup_batch_size", warmup_batch_size, low=1)
    return learning_rate / (1 + batch_size / warmup_batch_size)
